"""GPTModelProvider as it is recorded, over the TransformerConfig of the Megatron-core that is installed."""

import ast
import json
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

RECORDED = json.loads((Path(__file__).parents[4] / "megatron_bridge_0_3_1.json").read_text())["GPTModelProvider"]


def default_layer_spec(config: Any) -> Any:
    raise NotImplementedError("Transformer Engine's layers")


def _read_default(text: str) -> Any:
    if text.startswith("field("):  # whether a fused kernel is at hand
        return False
    return default_layer_spec if text == "default_layer_spec" else ast.literal_eval(text)


def _provide(self: Any, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> Any:
    raise NotImplementedError("a model of its own")


GPTModelProvider: Any = make_dataclass(
    "GPTModelProvider",
    [(name, Any, field(default=_read_default(text))) for name, text in RECORDED["fields"].items()],
    bases=(TransformerConfig,),
    namespace={"__post_init__": lambda _: None, "provide": _provide},
)
"""Derived fields stay as they were given; the package computes them in finalize()."""


class UnheardOfProvider(GPTModelProvider):
    def provide(self, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None) -> Any:
        raise NotImplementedError("a model of another class")
