"""The shape of a decoder-only model as its Hugging Face config.json tells it, and whether a parallel layout fits it.

Imports neither torch nor megatron, so that a configuration is checked before anything heavy starts. Defaults are
transformers' own for a key that is left out; keys are read as transformers 4 and 5 spell them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpo_nemo.config import ParallelConfig
from irpo_nemo.errors import ConfigError, ModelError

_VOCABULARY_MULTIPLE = 8
"""Rows per tensor-parallel rank come in multiples of this, which tensor cores ask for."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes and options that every decoder-only config.json has."""

    hidden_size: int
    ffn_hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    """Tokens that exist, before padding."""
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    """None for plain RoPE; else what transformers calls rope_scaling, with rope_type."""
    dtype: str
    """Of the stored weights, torch's name: float32, bfloat16 or float16."""

    @classmethod
    def from_hf_config(cls, hf_config: dict[str, Any]) -> "ModelShape":
        """Read the shape.

        Raises:
            ModelError: A size is missing.
        """
        needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        missing = [key for key in needed if key not in hf_config]
        if missing:
            raise ModelError(f"config.json: lacks {', '.join(missing)}; a decoder-only model's config.json is wanted.")
        heads = hf_config["num_attention_heads"]
        rope_theta, rope_scaling = _read_rope(hf_config)
        return cls(
            hidden_size=hf_config["hidden_size"],
            ffn_hidden_size=hf_config["intermediate_size"],
            num_layers=hf_config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=hf_config.get("num_key_value_heads") or heads,
            head_dim=hf_config.get("head_dim") or hf_config["hidden_size"] // heads,
            vocab_size=hf_config["vocab_size"],
            max_position_embeddings=hf_config.get("max_position_embeddings", 2048),
            rms_norm_eps=hf_config.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(hf_config.get("tie_word_embeddings", False)),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            dtype=str(hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32").removeprefix("torch."),
        )


def _read_rope(hf_config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Read theta and scaling.

    transformers 5 has one `rope_parameters`; transformers 4 has `rope_theta` beside `rope_scaling`, whose rope_type was
    once spelled type.
    """
    parameters = dict(hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {})
    theta = parameters.pop("rope_theta", None) or hf_config.get("rope_theta") or 10000.0
    parameters["rope_type"] = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    return float(theta), None if parameters["rope_type"] == "default" else parameters


def read_hf_config(folder: Path | str) -> dict[str, Any]:
    """Read config.json of a Hugging Face folder.

    Raises:
        ModelError: The file is missing, or is not a JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{path}: no such file. Give a Hugging Face model folder with config.json and safetensors weights."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a {type(value).__name__}, but a JSON object is wanted.")
    return value


def layout_problems(hf_config: dict[str, Any], parallel: ParallelConfig) -> list[str]:
    """List what keeps the model from being split so; empty when it fits."""
    shape = ModelShape.from_hf_config(hf_config)
    tp_size, pp_size = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    divided = [
        ("num_attention_heads", shape.num_attention_heads, "tensor_model_parallel_size", tp_size),
        ("num_key_value_heads", shape.num_key_value_heads, "tensor_model_parallel_size", tp_size),
        ("intermediate_size", shape.ffn_hidden_size, "tensor_model_parallel_size", tp_size),
        ("num_hidden_layers", shape.num_layers, "pipeline_model_parallel_size", pp_size),
    ]
    return [
        f"parallel.{key}: is {size}, but the model's {name}={value} must be a multiple of it"
        for name, value, key, size in divided
        if value % size
    ]


def check_layout(hf_config: dict[str, Any], parallel: ParallelConfig) -> None:
    """Refuse a parallel layout that the model cannot be split into.

    Raises:
        ConfigError: With every mistake, one a line.
    """
    if problems := layout_problems(hf_config, parallel):
        raise ConfigError("\n".join(problems))


def padded_vocab_size(vocab_size: int, tp_size: int) -> int:
    """Rows of the embedding once every tensor-parallel rank has equally many, a multiple of 8."""
    multiple = _VOCABULARY_MULTIPLE * tp_size
    return -(-vocab_size // multiple) * multiple
