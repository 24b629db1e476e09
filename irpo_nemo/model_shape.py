"""The shape of a decoder-only model, and whether a parallel layout can hold it. No torch, no megatron.

Read from Hugging Face's config.json, or from the configuration when the model is still to be made. Megatron-core splits
attention heads, key-value heads and feed-forward columns over tensor-parallel ranks, and layers evenly over
pipeline-parallel ranks and their virtual stages, so each must divide. Keys are read as transformers 4 and 5 spell them;
the defaults of keys that are left out are transformers' own.
"""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpo_nemo.config import IRPOConfig, ModelConfig, ParallelConfig
from irpo_nemo.errors import ConfigError, ModelError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""model_type of config.json that we have a module of, named so, in `irpo_nemo.training.families`."""

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

_FP8_MULTIPLE = 16
"""Width of a matrix that Transformer Engine multiplies in FP8."""

_VOCABULARY_MULTIPLE = 8
"""Rows per tensor-parallel rank come in multiples of this, which tensor cores ask for."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What decides whether a parallel layout fits."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    ffn_hidden_size: int
    head_dim: int


@dataclass(frozen=True, kw_only=True)
class ModelShape(ModelSizes):
    """All that config.json tells about a decoder-only model."""

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
        """Read the shape from a config.json that `read_hf_config` has checked."""
        rope_theta, rope_scaling = _read_rope(hf_config)
        return cls(
            **vars(_read_sizes(hf_config)),
            vocab_size=hf_config["vocab_size"],
            max_position_embeddings=hf_config.get("max_position_embeddings", 2048),
            rms_norm_eps=hf_config.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(hf_config.get("tie_word_embeddings", False)),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            dtype=str(hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32").removeprefix("torch."),
        )


def _read_sizes(hf_config: dict[str, Any]) -> ModelSizes:
    return ModelSizes(
        hidden_size=hf_config["hidden_size"],
        num_layers=hf_config["num_hidden_layers"],
        num_attention_heads=hf_config["num_attention_heads"],
        num_key_value_heads=hf_config.get("num_key_value_heads") or hf_config["num_attention_heads"],
        ffn_hidden_size=hf_config["intermediate_size"],
        head_dim=hf_config.get("head_dim") or hf_config["hidden_size"] // hf_config["num_attention_heads"],
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
    """Read config.json of a Hugging Face folder that is to be trained.

    Raises:
        ModelError: With every mistake, one a line: no folder, no file, not JSON, a size or model_type missing.
    """
    hf_config = _read_json(Path(folder))
    mistakes = list(_find_hf_mistakes(hf_config, Path(folder) / "config.json", needed=(*_SIZES, "vocab_size")))
    if "model_type" not in hf_config:
        mistakes.append(f"{folder}/config.json gives no model_type; known are {', '.join(MODEL_TYPES)}")
    if mistakes:
        raise ModelError("\n".join(mistakes))
    return hf_config


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; name a Hugging Face folder on this machine")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json; name a Hugging Face folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object; download the model again")
    return value


def _find_hf_mistakes(hf_config: dict[str, Any], path: Path, *, needed: tuple[str, ...]) -> Iterator[str]:
    for name in needed:
        if not _is_size(hf_config.get(name)):
            yield f"{path} gives no number for {name}; is it a decoder-only model?"


def find_unknown_family(hf_config: dict[str, Any], path: Path) -> Iterator[str]:
    """Yield a mistake if the model is of no family of ours, and megatron-bridge is not here to be asked."""
    model_type = hf_config.get("model_type")
    if model_type is not None and model_type not in MODEL_TYPES and not _has_megatron_bridge():
        yield (
            f"{path}: model_type is {model_type!r}, which cannot be trained; known are {', '.join(MODEL_TYPES)}; "
            "megatron-bridge would be asked about another one, but is not installed here"
        )


def _has_megatron_bridge() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("megatron", "megatron.bridge"))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def find_model_mistakes(config: IRPOConfig) -> Iterator[str]:
    """Yield what is wrong with the model folder, or with splitting the model as `parallel` asks."""
    if config.model.path is None:
        yield from _find_random_model_mistakes(config.model)
        yield from _find_size_mistakes(_sizes_of_random_model(config.model), config, source="model")
        return
    path = Path(config.model.path) / "config.json"
    try:
        hf_config = _read_json(path.parent)
    except ModelError as error:
        yield f"model.path: {error}"
        return
    mistakes = list(_find_hf_mistakes(hf_config, path, needed=_SIZES))
    if config.launcher.name == "local" or config.launcher.slurm.container == "none":  # else containers may have more
        mistakes += find_unknown_family(hf_config, path)
    if mistakes:
        yield from (f"model.path: {mistake}" for mistake in mistakes)
        return
    yield from _find_size_mistakes(_read_sizes(hf_config), config, source=str(path))


def _find_size_mistakes(sizes: ModelSizes, config: IRPOConfig, *, source: str) -> Iterator[str]:
    yield from find_layout_mistakes(sizes, config.parallel, source=source)
    for section, training in (("sft", config.sft), ("training", config.training)):
        if training.fp8 is not None:
            mistakes = _find_fp8_mistakes(sizes, config.parallel.tensor_model_parallel_size, source=source)
            yield from (f"{section}.fp8: {mistake}" for mistake in mistakes)


def _sizes_of_random_model(model: ModelConfig) -> ModelSizes:
    return ModelSizes(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        ffn_hidden_size=model.ffn_hidden_size,
        head_dim=model.hidden_size // model.num_attention_heads,
    )


def _find_random_model_mistakes(model: ModelConfig) -> Iterator[str]:
    size, multiple = model.hidden_size, 2 * model.num_attention_heads
    if size % multiple:
        yield f"model.hidden_size: is {size}, but must be a multiple of 2 x num_attention_heads = {multiple}"


def find_layout_mistakes(sizes: ModelSizes, parallel: ParallelConfig, *, source: str) -> Iterator[str]:
    """Yield what keeps a model from being split so.

    Args:
        sizes: The model's.
        parallel: The layout.
        source: Where the sizes stand, for messages: `model`, or the path of a config.json.
    """
    heads, groups = sizes.num_attention_heads, sizes.num_key_value_heads
    if heads % groups:
        yield f"{source}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {groups}"
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    splits = [
        ("tensor_model_parallel_size", tensor, ("num_attention_heads", "num_key_value_heads", "ffn_hidden_size")),
        ("pipeline_model_parallel_size", pipeline, ("num_layers",)),
    ]
    for key, ways, names in splits:
        for name in names:
            if getattr(sizes, name) % ways:
                yield f"parallel.{key}: is {ways}, but must divide {name} = {getattr(sizes, name)} (from {source})"
    virtual = parallel.virtual_pipeline_model_parallel_size
    layers_of_a_stage, rest = divmod(sizes.num_layers, pipeline)
    if not rest and layers_of_a_stage % virtual:
        yield (
            f"parallel.virtual_pipeline_model_parallel_size: is {virtual}, but must divide num_layers / "
            f"pipeline_model_parallel_size = {layers_of_a_stage} (from {source})"
        )


def _find_fp8_mistakes(sizes: ModelSizes, tensor: int, *, source: str) -> Iterator[str]:
    queries, keys = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
    widths = {
        "hidden_size": sizes.hidden_size,
        "ffn_hidden_size / tensor_model_parallel_size": sizes.ffn_hidden_size // tensor,
        "width of queries / tensor_model_parallel_size": queries // tensor,
        "width of queries, keys and values / tensor_model_parallel_size": (queries + 2 * keys) // tensor,
    }
    for name, width in widths.items():
        if width % _FP8_MULTIPLE:
            yield f"needs {name} as a multiple of {_FP8_MULTIPLE}, but it is {width} (from {source}); set fp8=null"


def check_layout(sizes: ModelSizes, parallel: ParallelConfig, *, source: str) -> None:
    """Refuse a layout that the model cannot be split into.

    Raises:
        ConfigError: With every mistake, one a line.
    """
    if mistakes := list(find_layout_mistakes(sizes, parallel, source=source)):
        raise ConfigError("\n".join(mistakes))


def padded_vocab_size(vocab_size: int, tp_size: int) -> int:
    """Rows of the embedding once every tensor-parallel rank has equally many, a multiple of 8."""
    multiple = _VOCABULARY_MULTIPLE * tp_size
    return -(-vocab_size // multiple) * multiple
