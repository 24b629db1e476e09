"""The modules we put into Megatron's local layer spec: causal attention by torch, and RMSNorm.

Megatron's own `DotProductAttention` materialises the scores of every position with every other, and its norm without
TransformerEngine refuses sequence parallelism. Both modules have the interface that Megatron-core 0.16 to 0.19 builds
and calls.

Shapes are Megatron's: s = positions, b = sequences of the micro batch, heads = this rank's query heads, groups = this
rank's key-value heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class CausalAttention(torch.nn.Module):
    """Causal grouped-query attention over right-padded sequences.

    Padding sits at the end, where no real token can see it, so no mask is needed: the causal kernel is exact for every
    real position.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,  # noqa: ARG002
        attn_mask_type: Any,  # noqa: ARG002
        attention_type: str,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        assert attention_type == "self"
        assert config.context_parallel_size == 1
        assert config.attention_dropout == 0.0
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attn_mask_type: Any = None,  # noqa: ARG002
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attend causally.

        Args:
            query: [s, b, heads, head_dim].
            key: [s, b, groups, head_dim].
            value: [s, b, groups, head_dim].
            attention_mask: None; pass None to the model.

        Returns:
            [s, b, heads * head_dim].
        """
        assert attention_mask is None and attention_bias is None and packed_seq_params is None
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        context = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return context.permute(2, 0, 1, 3).flatten(2)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, whose weight says if its gradient is to be summed over the tensor-parallel ranks."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
