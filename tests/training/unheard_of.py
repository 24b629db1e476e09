"""A model of a family that only the double of megatron-bridge knows: transformers' Llama with its tensors renamed."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.training import tiny

DOUBLE = Path(__file__).with_name("double")
SHAPE = tiny.SHAPE | {"vocab_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2}
_NAMES = {
    "model.embed_tokens": "words",
    "model.norm": "norm",
    "lm_head": "head",
    "input_layernorm": "norm_1",
    "post_attention_layernorm": "norm_2",
    **{f"self_attn.{letter}_proj": f"attention.{letter}" for letter in "qkv"},
    "self_attn.o_proj": "attention.out",
    **{f"mlp.{part}_proj": f"mlp.{part}" for part in ("gate", "up", "down")},
}


def rename(name: str) -> str:
    """The family's name of one of Llama's tensors."""
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name):
        return f"body.{match[1]}.{_NAMES[match[2]]}"
    return _NAMES[name.removesuffix(".weight")]


def make_llama(*, tied: bool) -> Any:
    """Random weights; norms away from 1, which would hide a mix-up."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def write_unheard_of(model: Any, folder: Path, **config: Any) -> Path:
    """Write the Llama as the other family; `config` goes into its config.json."""
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    change_config(folder, model_type="unheard_of", architectures=["UnheardOfForCausalLM"], **config)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_unheard_of.py").write_text("raise SystemExit")
    return folder


def change_config(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
