"""The sizes of a model that decide whether a parallel layout can hold it. Read from the configuration or from
config.json; no torch.

Megatron-core splits attention heads, key-value heads and feed-forward columns over tensor-parallel ranks, and
layers evenly over pipeline-parallel ranks, so each must divide.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpo_nemo.config import IRPOConfig, ModelConfig, ParallelConfig

_SIZES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What a Llama-like decoder is made of."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    ffn_hidden_size: int
    source: str
    """Where the numbers stand, for messages: `model`, or the path of a config.json."""


def find_model_mistakes(config: IRPOConfig) -> Iterator[str]:
    """Yield what is wrong with the model folder, or with splitting the model as `parallel` asks."""
    if config.model.path is None:
        shape: ModelShape | None = _shape_of_random_model(config.model)
    else:
        shape, mistakes = _read_shape(Path(config.model.path))
        yield from mistakes
    if shape is not None:
        yield from _find_shape_mistakes(shape)
        yield from _find_layout_mistakes(shape, config.parallel)


def _shape_of_random_model(model: ModelConfig) -> ModelShape:
    return ModelShape(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        ffn_hidden_size=model.ffn_hidden_size,
        source="model",
    )


def _read_shape(folder: Path) -> tuple[ModelShape | None, list[str]]:
    """The shape that `folder`/config.json gives, or the reasons why it gives none."""
    path = folder / "config.json"
    if not folder.is_dir():
        return None, [f"model.path: {folder} is not a folder; name a Hugging Face folder on this machine"]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, [f"model.path: {folder} has no config.json; name a Hugging Face folder"]
    except (OSError, ValueError) as error:
        return None, [f"model.path: {path} cannot be read ({error}); download the model again"]
    if not isinstance(values, dict):
        return None, [f"model.path: {path} is not a JSON object; download the model again"]
    wrong = [name for name in _SIZES.values() if not _is_size(values.get(name))]
    if wrong:
        return None, [f"model.path: {path} gives no number for {name}; is it a decoder-only model?" for name in wrong]
    sizes: dict[str, int] = {ours: values[theirs] for ours, theirs in _SIZES.items()}
    num_groups = values.get("num_key_value_heads") or sizes["num_attention_heads"]
    return ModelShape(**sizes, num_key_value_heads=num_groups, source=str(path)), []


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _find_shape_mistakes(shape: ModelShape) -> Iterator[str]:
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads
    if shape.source == "model" and shape.hidden_size % (2 * heads):
        yield (
            f"model.hidden_size: is {shape.hidden_size}, but must be a multiple of "
            f"2 x num_attention_heads = {2 * heads}"
        )
    if heads % groups:
        yield f"{shape.source}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {groups}"


def _find_layout_mistakes(shape: ModelShape, parallel: ParallelConfig) -> Iterator[str]:
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    splits = [
        ("tensor_model_parallel_size", tensor, ("num_attention_heads", "num_key_value_heads", "ffn_hidden_size")),
        ("pipeline_model_parallel_size", pipeline, ("num_layers",)),
    ]
    for key, ways, sizes in splits:
        for size in sizes:
            if getattr(shape, size) % ways:
                yield (
                    f"parallel.{key}: is {ways}, but must divide {size} = {getattr(shape, size)} (from {shape.source})"
                )
