"""Llama, and models that differ from it by a bias or a norm: RMSNorm, SwiGLU, RoPE, grouped-query attention.

Megatron keeps query, key and value in one matrix, ordered by key-value head: [queries of head 0, key 0, value 0,
queries of head 1, ...]. linear_fc1 is [gate; up] on every tensor-parallel rank. Hugging Face's names are those of
transformers' LlamaForCausalLM.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irpo_nemo.errors import ModelError
from irpo_nemo.model_shape import ModelShape, padded_vocab_size
from irpo_nemo.training.families import Piece

_ROPE_KEYS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
"""The kinds of RoPE scaling that are built, and what config.json must say of each."""


@dataclass(frozen=True, kw_only=True)
class LlamaFamily:
    """Llama itself, or one of its relatives."""

    qkv_bias: bool = False
    """Query, key and value projections have a bias, as Qwen2's."""
    qk_norm: bool = False
    """Each head's query and key go through an RMSNorm before RoPE, as Qwen3's."""

    def find_unsupported(self, hf_config: dict[str, Any]) -> Iterator[str]:
        """Yield each option that this family does not build: its name, its value and the wanted one."""
        wanted = {"attention_bias": (False,), "mlp_bias": (False,), "hidden_act": ("silu",), "quantization_config": ()}
        for key, values in wanted.items():
            found = hf_config.get(key)
            if found is not None and found not in values:
                wanted_text = f"{key}={values[0]!r}" if values else f"no {key}"
                yield f"{key} is {found!r}, which is not supported; {wanted_text} is wanted"
        shape = ModelShape.from_hf_config(hf_config)
        window = hf_config.get("sliding_window") if hf_config.get("use_sliding_window", True) else None
        if window is not None and window < shape.max_position_embeddings:
            yield (
                f"sliding_window is {window}, which is not supported; null, or max_position_embeddings of at most "
                "that, is wanted"
            )
        if (scaling := shape.rope_scaling) is not None:
            needed = _ROPE_KEYS.get(scaling["rope_type"])
            if needed is None:
                known = ", ".join(["default", *_ROPE_KEYS])
                yield f"rope scaling is {scaling['rope_type']!r}, which is not supported; known are {known}"
            elif missing := sorted(needed - scaling.keys()):
                yield f"rope scaling {scaling['rope_type']!r} lacks {', '.join(missing)}"

    def transformer_options(self, hf_config: dict[str, Any]) -> dict[str, Any]:
        """Fields of Megatron's TransformerConfig."""
        shape = ModelShape.from_hf_config(hf_config)
        return {
            "num_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "ffn_hidden_size": shape.ffn_hidden_size,
            "num_attention_heads": shape.num_attention_heads,
            "num_query_groups": shape.num_key_value_heads,
            "kv_channels": shape.head_dim,
            "normalization": "RMSNorm",
            "layernorm_epsilon": shape.rms_norm_eps,
            "gated_linear_unit": True,
            "activation_func": F.silu,
            "add_bias_linear": False,
            "add_qkv_bias": self.qkv_bias,
            "qk_layernorm": self.qk_norm,
        }

    def gpt_options(self, hf_config: dict[str, Any]) -> dict[str, Any]:
        """Arguments of Megatron's GPTModel."""
        shape = ModelShape.from_hf_config(hf_config)
        return {
            "position_embedding_type": "rope",
            "rotary_base": shape.rope_theta,
            "share_embeddings_and_output_weights": shape.tie_word_embeddings,
        }

    def rope_frequencies(self, hf_config: dict[str, Any]) -> Tensor:
        """Radians a position for each pair of a head's dimensions, [head_dim / 2] fp32."""
        shape = ModelShape.from_hf_config(hf_config)
        steps = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
        frequencies = 1.0 / shape.rope_theta**steps
        if shape.rope_scaling is None:
            return frequencies
        scale = {"linear": _scale_linearly, "llama3": _scale_as_llama3}[shape.rope_scaling["rope_type"]]
        return scale(frequencies, shape.rope_scaling)

    def hf_tensors(self, hf_config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Every tensor of the Hugging Face folder, with its shape."""
        shape = ModelShape.from_hf_config(hf_config)
        tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, shape.hidden_size)}
        for layer in range(shape.num_layers):
            tensors |= {f"model.layers.{layer}.{name}": size for name, size in self._layer_tensors(shape).items()}
        tensors["model.norm.weight"] = (shape.hidden_size,)
        if not shape.tie_word_embeddings:
            tensors["lm_head.weight"] = (shape.vocab_size, shape.hidden_size)
        return tensors

    def _layer_tensors(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
        query, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        tensors: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (query, hidden),
            "self_attn.k_proj.weight": (key_value, hidden),
            "self_attn.v_proj.weight": (key_value, hidden),
            "self_attn.o_proj.weight": (hidden, query),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (ffn, hidden),
            "mlp.up_proj.weight": (ffn, hidden),
            "mlp.down_proj.weight": (hidden, ffn),
        }
        if self.qkv_bias:
            tensors |= {
                "self_attn.q_proj.bias": (query,),
                "self_attn.k_proj.bias": (key_value,),
                "self_attn.v_proj.bias": (key_value,),
            }
        if self.qk_norm:
            tensors |= {"self_attn.q_norm.weight": (shape.head_dim,), "self_attn.k_norm.weight": (shape.head_dim,)}
        return tensors

    def parameter_pieces(self, name: str, hf_config: dict[str, Any], *, tp_rank: int, tp_size: int) -> list[Piece]:
        """The slices that, stacked, are this rank's shard of a Megatron parameter.

        Raises:
            ModelError: The parameter is none of this family's.
        """
        shape = ModelShape.from_hf_config(hf_config)
        if match := re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name):
            return _layer_pieces(f"model.layers.{match[1]}", match[2], shape, tp_rank, tp_size)
        if name == "decoder.final_layernorm.weight":
            return [Piece(tensor="model.norm.weight", start=0, stop=shape.hidden_size)]
        if name == "embedding.word_embeddings.weight" or (name == "output_layer.weight" and shape.tie_word_embeddings):
            return [_vocabulary_piece("model.embed_tokens.weight", shape, tp_rank, tp_size)]
        if name == "output_layer.weight":
            return [_vocabulary_piece("lm_head.weight", shape, tp_rank, tp_size)]
        raise ModelError(f"{name}: no Hugging Face tensor is known for this Megatron parameter.")


FAMILY = LlamaFamily()


def _scale_linearly(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    return frequencies / scaling["factor"]


def _scale_as_llama3(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1's: slow frequencies are divided by `factor`, fast ones kept, those between blended.

    Slow and fast are told by how often a wave fits into the context of pre-training.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((waves - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / scaling["factor"]


def _layer_pieces(prefix: str, parameter: str, shape: ModelShape, tp_rank: int, tp_size: int) -> list[Piece]:
    def split(tensor: str, size: int, dim: int = 0) -> Piece:
        share = size // tp_size
        return Piece(tensor=f"{prefix}.{tensor}.weight", start=tp_rank * share, stop=(tp_rank + 1) * share, dim=dim)

    if parameter in ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"):
        return _qkv_pieces(f"{prefix}.self_attn", parameter.rpartition(".")[2], shape, tp_rank, tp_size)
    if parameter == "self_attention.linear_proj.weight":
        return [split("self_attn.o_proj", shape.num_attention_heads * shape.head_dim, dim=1)]
    if parameter == "mlp.linear_fc1.weight":
        return [split("mlp.gate_proj", shape.ffn_hidden_size), split("mlp.up_proj", shape.ffn_hidden_size)]
    if parameter == "mlp.linear_fc2.weight":
        return [split("mlp.down_proj", shape.ffn_hidden_size, dim=1)]
    norms = {
        "input_layernorm.weight": ("input_layernorm.weight", shape.hidden_size),
        "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight", shape.hidden_size),
        "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight", shape.head_dim),
        "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight", shape.head_dim),
    }
    if parameter in norms:
        tensor, size = norms[parameter]
        return [Piece(tensor=f"{prefix}.{tensor}", start=0, stop=size)]
    raise ModelError(f"{prefix}: no Hugging Face tensor is known for Megatron's {parameter}.")


def _qkv_pieces(prefix: str, kind: str, shape: ModelShape, tp_rank: int, tp_size: int) -> list[Piece]:
    groups = shape.num_key_value_heads // tp_size
    query_rows = shape.num_attention_heads // shape.num_key_value_heads * shape.head_dim
    pieces = []
    for group in range(tp_rank * groups, (tp_rank + 1) * groups):
        for projection, rows in (("q_proj", query_rows), ("k_proj", shape.head_dim), ("v_proj", shape.head_dim)):
            pieces.append(Piece(tensor=f"{prefix}.{projection}.{kind}", start=group * rows, stop=(group + 1) * rows))
    return pieces


def _vocabulary_piece(tensor: str, shape: ModelShape, tp_rank: int, tp_size: int) -> Piece:
    share = padded_vocab_size(shape.vocab_size, tp_size) // tp_size
    start, stop = (min(rank * share, shape.vocab_size) for rank in (tp_rank, tp_rank + 1))
    return Piece(tensor=tensor, start=start, stop=stop)
