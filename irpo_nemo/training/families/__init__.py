"""Model families: how a Hugging Face folder becomes a Megatron `GPTModel`, and back.

A new family is one module with the functions of `Family`, and one line in `FAMILIES`. This module imports none of them
until asked.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from irpo_nemo.errors import ModelError

FAMILIES = {
    "llama": "irpo_nemo.training.families.llama",
}
"""config.json's model_type -> the module that knows it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A slice of one Hugging Face tensor: entries start to stop (exclusive) along `dim`, all of the other dimension."""

    tensor: str
    start: int
    stop: int
    dim: int = 0


class Family(Protocol):
    """What the module of a family provides."""

    def check_support(self, hf_config: dict[str, Any]) -> None:
        """Raise ModelError when config.json asks for something this family's module does not build."""
        ...

    def transformer_options(self, hf_config: dict[str, Any]) -> dict[str, Any]:
        """Fields of Megatron's TransformerConfig that follow from the model's shape."""
        ...

    def gpt_options(self, hf_config: dict[str, Any]) -> dict[str, Any]:
        """Arguments of GPTModel that follow from the model: position embedding, tied embeddings."""
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


def find_family(hf_config: dict[str, Any]) -> Family:
    """Find the module that knows this model, and let it check the options of config.json.

    Raises:
        ModelError: The model_type is unknown, or an option is not supported.
    """
    model_type = hf_config.get("model_type")
    if model_type not in FAMILIES:
        raise ModelError(
            f"config.json: model_type is {model_type!r}, which is not supported. Known: {', '.join(sorted(FAMILIES))}."
        )
    family: Any = importlib.import_module(FAMILIES[model_type])
    family.check_support(hf_config)
    return family
