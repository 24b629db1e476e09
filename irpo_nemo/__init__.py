"""Iterative Reasoning Preference Optimization, end to end, on Megatron-core.

The house and its floors are drawn in docs/code.md; `irpo_nemo.pipeline` is the place to start reading.
"""

__version__ = "0.1.0"
