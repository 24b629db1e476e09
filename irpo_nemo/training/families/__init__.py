"""Model families: how a Hugging Face folder becomes a Megatron `GPTModel`, and back.

A new family is one module here, named as config.json's model_type, whose FAMILY is a `Family`, and one entry in
`irpo_nemo.model_shape.MODEL_TYPES`. This module imports none of them until asked. Any other model_type is left to
`bridge`.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from irpo_nemo.errors import ModelError
from irpo_nemo.model_shape import MODEL_TYPES, find_unknown_family


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A slice of one Hugging Face tensor: entries start to stop (exclusive) along `dim`, all of the other dimension."""

    tensor: str
    start: int
    stop: int
    dim: int = 0


class Family(Protocol):
    """What a family knows."""

    def find_unsupported(self, hf_config: dict[str, Any]) -> Iterator[str]:
        """Yield what config.json asks for and this family's module does not build."""
        ...

    def transformer_options(self, hf_config: dict[str, Any]) -> dict[str, Any]:
        """Fields of Megatron's TransformerConfig that follow from the model's shape."""
        ...

    def gpt_options(self, hf_config: dict[str, Any]) -> dict[str, Any]:
        """Arguments of GPTModel that follow from the model: position embedding, tied embeddings."""
        ...

    def rope_frequencies(self, hf_config: dict[str, Any]) -> Tensor:
        """Radians a position for each pair of a head's dimensions, [head_dim / 2] fp32."""
        ...

    def hf_tensors(self, hf_config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Every tensor of the Hugging Face folder, with its shape."""
        ...

    def parameter_pieces(self, name: str, hf_config: dict[str, Any], *, tp_rank: int, tp_size: int) -> list[Piece]:
        """The slices that, stacked along dimension 0, are this rank's shard of a Megatron parameter.

        The layer number in `name` counts from the first layer of the whole model. Rows left over at the end of the
        shard are padding.
        """
        ...


def find_family(hf_config: dict[str, Any], folder: Path) -> Family:
    """Find what knows the model of `folder`, and let it check the options of config.json.

    Args:
        hf_config: What `read_hf_config` read.
        folder: Where from, for messages.

    Raises:
        ModelError: Nothing does, or with every option that is not supported, one a line.
    """
    if mistakes := list(find_unknown_family(hf_config, folder / "config.json")):
        raise ModelError("\n".join(mistakes))
    family: Family
    if hf_config["model_type"] in MODEL_TYPES:
        family = importlib.import_module(f"{__name__}.{hf_config['model_type']}").FAMILY
    else:
        family = importlib.import_module(f"{__name__}.bridge").open_family(folder)
    if problems := list(family.find_unsupported(hf_config)):
        raise ModelError("\n".join(f"{folder}/config.json: {problem}" for problem in problems))
    return family
