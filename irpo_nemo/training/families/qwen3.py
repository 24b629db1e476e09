"""Qwen3, dense: Llama with an RMSNorm on each head's query and key."""

from irpo_nemo.training.families.llama import LlamaFamily

FAMILY = LlamaFamily(qk_norm=True)
