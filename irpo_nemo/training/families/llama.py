"""Llama and models of its shape: RMSNorm, SwiGLU, RoPE (plain or Llama 3's scaling), grouped-query attention, no bias.

Megatron keeps query, key and value in one matrix, ordered by key-value head: [queries of head 0, key 0, value 0,
queries of head 1, ...]. linear_fc1 is [gate; up] on every tensor-parallel rank. Hugging Face's names are those of
transformers' LlamaForCausalLM.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F

from irpo_nemo.errors import ModelError
from irpo_nemo.model_shape import ModelShape, padded_vocab_size
from irpo_nemo.training.families import Piece

_MEGATRON_LLAMA3_SCALING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What Megatron-core 0.16 to 0.19 builds in; only `factor` can be chosen."""


def find_unsupported(hf_config: dict[str, Any]) -> Iterator[str]:
    """Yield each option that this module does not build: its name, its value and the wanted one."""
    wanted = {"attention_bias": (False,), "mlp_bias": (False,), "hidden_act": ("silu",), "quantization_config": ()}
    for key, values in wanted.items():
        found = hf_config.get(key)
        if found is not None and found not in values:
            wanted_text = f"{key}={values[0]!r}" if values else f"no {key}"
            yield f"{key} is {found!r}, which is not supported; {wanted_text} is wanted"
    scaling = ModelShape.from_hf_config(hf_config).rope_scaling
    if scaling is not None and not _builds_rope_scaling(scaling):
        wanted_scaling = {"rope_type": "llama3", **_MEGATRON_LLAMA3_SCALING}
        yield f"rope scaling is {scaling}, which is not supported; none, or {wanted_scaling} with a factor, is wanted"


def _builds_rope_scaling(scaling: dict[str, Any]) -> bool:
    wanted = {"rope_type": "llama3", **_MEGATRON_LLAMA3_SCALING}
    return "factor" in scaling and all(scaling.get(key) == value for key, value in wanted.items())


def transformer_options(hf_config: dict[str, Any]) -> dict[str, Any]:
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
    }


def gpt_options(hf_config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Megatron's GPTModel."""
    shape = ModelShape.from_hf_config(hf_config)
    options = {
        "position_embedding_type": "rope",
        "rotary_base": shape.rope_theta,
        "share_embeddings_and_output_weights": shape.tie_word_embeddings,
    }
    if shape.rope_scaling is not None:
        options |= {"rope_scaling": True, "rope_scaling_factor": shape.rope_scaling["factor"]}
    return options


def hf_tensors(hf_config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Hugging Face folder, with its shape."""
    shape = ModelShape.from_hf_config(hf_config)
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    query, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    layer_tensors = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_layers):
        tensors |= {f"model.layers.{layer}.{name}.weight": size for name, size in layer_tensors.items()}
    tensors["model.norm.weight"] = (hidden,)
    if not shape.tie_word_embeddings:
        tensors["lm_head.weight"] = (shape.vocab_size, hidden)
    return tensors


def parameter_pieces(name: str, hf_config: dict[str, Any], *, tp_rank: int, tp_size: int) -> list[Piece]:
    """The slices that, stacked, are this rank's shard of a Megatron parameter.

    Raises:
        ModelError: The parameter is none of a Llama's.
    """
    shape = ModelShape.from_hf_config(hf_config)
    if match := re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)\.weight", name):
        return _layer_pieces(f"model.layers.{match[1]}", match[2], shape, tp_rank, tp_size)
    if name == "decoder.final_layernorm.weight":
        return [Piece(tensor="model.norm.weight", start=0, stop=shape.hidden_size)]
    if name == "embedding.word_embeddings.weight" or (name == "output_layer.weight" and shape.tie_word_embeddings):
        return [_vocabulary_piece("model.embed_tokens.weight", shape, tp_rank, tp_size)]
    if name == "output_layer.weight":
        return [_vocabulary_piece("lm_head.weight", shape, tp_rank, tp_size)]
    raise ModelError(f"{name}: no Hugging Face tensor of a llama is known for this Megatron parameter.")


def _layer_pieces(prefix: str, module: str, shape: ModelShape, tp_rank: int, tp_size: int) -> list[Piece]:
    def split(tensor: str, size: int, dim: int = 0) -> Piece:
        share = size // tp_size
        return Piece(tensor=f"{prefix}.{tensor}.weight", start=tp_rank * share, stop=(tp_rank + 1) * share, dim=dim)

    if module == "self_attention.linear_qkv":
        return _qkv_pieces(f"{prefix}.self_attn", shape, tp_rank, tp_size)
    if module == "self_attention.linear_proj":
        return [split("self_attn.o_proj", shape.num_attention_heads * shape.head_dim, dim=1)]
    if module == "mlp.linear_fc1":
        return [split("mlp.gate_proj", shape.ffn_hidden_size), split("mlp.up_proj", shape.ffn_hidden_size)]
    if module == "mlp.linear_fc2":
        return [split("mlp.down_proj", shape.ffn_hidden_size, dim=1)]
    norms = {"input_layernorm": "input_layernorm", "pre_mlp_layernorm": "post_attention_layernorm"}
    if module in norms:
        return [Piece(tensor=f"{prefix}.{norms[module]}.weight", start=0, stop=shape.hidden_size)]
    raise ModelError(f"{prefix}: no Hugging Face tensor of a llama is known for Megatron's {module}.")


def _qkv_pieces(prefix: str, shape: ModelShape, tp_rank: int, tp_size: int) -> list[Piece]:
    groups = shape.num_key_value_heads // tp_size
    query_rows = shape.num_attention_heads // shape.num_key_value_heads * shape.head_dim
    pieces = []
    for group in range(tp_rank * groups, (tp_rank + 1) * groups):
        for projection, rows in (("q_proj", query_rows), ("k_proj", shape.head_dim), ("v_proj", shape.head_dim)):
            pieces.append(Piece(tensor=f"{prefix}.{projection}.weight", start=group * rows, stop=(group + 1) * rows))
    return pieces


def _vocabulary_piece(tensor: str, shape: ModelShape, tp_rank: int, tp_size: int) -> Piece:
    share = padded_vocab_size(shape.vocab_size, tp_size) // tp_size
    start, stop = (min(rank * share, shape.vocab_size) for rank in (tp_rank, tp_rank + 1))
    return Piece(tensor=tensor, start=start, stop=stop)
