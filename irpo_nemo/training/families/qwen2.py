"""Qwen2 and Qwen2.5: Llama with a bias on query, key and value."""

from irpo_nemo.training.families.llama import LlamaFamily

FAMILY = LlamaFamily(qkv_bias=True)
