"""Transformer Engine in place of our attention, and of Megatron's linear layers where they compute in FP8.

Only on GPUs with Transformer Engine installed; nothing here is imported otherwise. Its attention knows no shared
prompts: it takes rows of one sequence each, or one row of sequences one after the other (THD). Its linear layers have
the names and shapes of Megatron's own, so weights and checkpoints are the same.

Written from the public source of Megatron-core 0.16 to 0.19 and Transformer Engine 2; never run on a GPU yet.
"""

import functools
import itertools
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from irpo_nemo.config import TrainingConfig
from irpo_nemo.config_checks import find_missing_packages
from irpo_nemo.errors import ConfigError
from irpo_nemo.training.layout import RowLayout


def require_transformer_engine(training: TrainingConfig) -> None:
    """Refuse options that this process cannot serve, before anything is built.

    Raises:
        ConfigError: Without Transformer Engine, or without a GPU.
    """
    mistakes = list(find_missing_packages(training, section="training"))
    if not mistakes and training.uses_transformer_engine and not torch.cuda.is_available():
        mistakes = [
            "training.attention, training.fp8: Transformer Engine needs a GPU, and this process sees none; set "
            "attention=groups and fp8=null"
        ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


@functools.cache
def transformer_engine_attention() -> type:
    """The class of Megatron's wrapper that takes a `RowLayout`; its base exists only with Transformer Engine."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    class RowAttention(TEDotProductAttention):
        """Shapes as in `GroupAttention`."""

        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            *,
            attn_mask_type: Any = None,  # noqa: ARG002
            packed_seq_params: RowLayout | None = None,
            **_: Any,
        ) -> Tensor:
            if packed_seq_params is None or not is_packed(packed_seq_params):
                # Padding stands at the end of rows, where no real token sees it; so plain causal attention is right.
                return super().forward(query, key, value, attention_mask, AttnMaskType.causal)
            sequences = thd_sequences(packed_seq_params, query.device)
            query, key, value = (x.squeeze(1) for x in (query, key, value))
            context = super().forward(
                query, key, value, attention_mask, AttnMaskType.padding_causal, packed_seq_params=sequences
            )
            return context.reshape(context.shape[0], 1, -1)

    return RowAttention


def is_packed(layout: RowLayout) -> bool:
    """Whether several sequences stand in one row."""
    return any(len(spans) > 1 for spans in layout.rows)


def thd_sequences(layout: RowLayout, device: torch.device) -> PackedSeqParams:
    """Where each sequence of the one row begins; the padding at its end is a sequence of its own."""
    (spans,) = layout.rows
    assert all(len(span.completions) == 1 for span in spans), "shared prompts are no plain sequences"
    bounds = [*(span.start for span in spans), spans[-1].stop]
    if bounds[-1] < layout.width:
        bounds.append(layout.width)
    longest = max(stop - start for start, stop in itertools.pairwise(bounds))
    places = torch.tensor(bounds, dtype=torch.int32, device=device)
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=places, cu_seqlens_kv=places, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def use_transformer_engine_linears(layer: Any) -> None:
    """Put Transformer Engine's linear layers into a local layer spec; what computes in FP8 are these."""
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

    attention, mlp = layer.submodules.self_attention.submodules, layer.submodules.mlp
    attention.linear_qkv, attention.linear_proj = TEColumnParallelLinear, TERowParallelLinear
    # A spec in Megatron-core 0.16, functools.partial in 0.19.
    mlp_parts = mlp.submodules if hasattr(mlp, "submodules") else mlp.keywords["submodules"]
    mlp_parts.linear_fc1, mlp_parts.linear_fc2 = TEColumnParallelLinear, TERowParallelLinear
