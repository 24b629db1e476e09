"""Mistral: Llama's shape, without its sliding window."""

from irpo_nemo.training.families.llama import LlamaFamily

FAMILY = LlamaFamily()
