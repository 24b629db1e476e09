"""The modules we put into Megatron's local layer spec: attention over groups of shared prompts, and RMSNorm.

Megatron's own `DotProductAttention` materialises the scores of every position with every other, and its norm without
TransformerEngine refuses sequence parallelism. Both modules have the interface that Megatron-core 0.16 to 0.19 builds
and calls.

Shapes are Megatron's: s = slots of a row, b = rows of the micro batch, heads = this rank's query heads, groups = this
rank's key-value heads. With context parallel, queries are of this rank's slots alone (s/cp).
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irpo_nemo.training.layout import GroupSpan, RowLayout

FLEX_BLOCK = 128
"""Slots of a block of FlexAttention's mask."""


class GroupAttention(torch.nn.Module):
    """Grouped-query attention: each slot sees its prompt and its own completion, as a `RowLayout` says.

    Without one, rows are causal and padded at their end, where no real token can see it. With context parallel, each
    rank gathers the keys and values of the others; grouped queries keep these small.
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
        packed_seq_params: RowLayout | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [s/cp, b, heads, head_dim].
            key: [s/cp, b, groups, head_dim].
            value: [s/cp, b, groups, head_dim].
            attention_mask: None; pass None to the model.
            packed_seq_params: The layout; None for plain causal rows.

        Returns:
            [s/cp, b, heads * head_dim].
        """
        assert attention_mask is None and attention_bias is None
        layout = packed_seq_params
        is_split = layout is not None and layout.own_slots is not None
        if is_split:
            key, value = _gather_from_context_ranks(key, value)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if layout is None:
            context = self._attend(query, key, value, is_causal=True)
        elif query.is_cuda:
            context = flex_attend(query, key, value, layout, scale=self.softmax_scale)
        elif is_split:
            context = self._attend(query, key, value, mask=_whole_mask(layout))
        else:
            context = self._attend_by_group(query, key, value, layout)
        return context.permute(2, 0, 1, 3).flatten(2)

    def _attend_by_group(self, query: Tensor, key: Tensor, value: Tensor, layout: RowLayout) -> Tensor:
        """Compute only what is seen: each prompt once, then each completion over its prompt and itself."""
        rows = []
        for row, spans in enumerate(layout.rows):
            of_row = (query[row : row + 1], key[row : row + 1], value[row : row + 1])
            parts = [part for span in spans for part in self._attend_in_group(*of_row, span)]
            if padding := layout.width - (spans[-1].stop if spans else 0):
                parts.append(query.new_zeros(1, query.shape[1], padding, value.shape[3]))
            rows.append(torch.cat(parts, dim=2))
        return torch.cat(rows)

    def _attend_in_group(self, query: Tensor, key: Tensor, value: Tensor, span: GroupSpan) -> list[Tensor]:
        """The contexts of the group's prompt and of each completion, [1, heads, slots, head_dim]."""
        prompt_stop = span.stop if len(span.completions) == 1 else span.start + span.prompt
        prompt = slice(span.start, prompt_stop)
        contexts = [self._attend(query[:, :, prompt], key[:, :, prompt], value[:, :, prompt], is_causal=True)]
        if len(span.completions) == 1:
            return contexts
        start = prompt_stop
        for length in span.completions:
            if length == 0:
                continue
            own = slice(start, start + length)
            keys, values = (torch.cat([x[:, :, prompt], x[:, :, own]], dim=2) for x in (key, value))
            mask = _sees_prompt_and_itself(span.prompt, length)
            contexts.append(self._attend(query[:, :, own], keys, values, mask=mask))
            start += length
        return contexts

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=is_causal,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )


def _gather_from_context_ranks(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """All-gather over the context-parallel group, [s, ...] in the order of `gathered_slots`; backward sums up."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    both = torch.cat([key, value], dim=-1)
    gathered = gather_from_sequence_parallel_region(both, group=parallel_state.get_context_parallel_group())
    return gathered.split([key.shape[-1], value.shape[-1]], dim=-1)


@functools.lru_cache(maxsize=4096)
def _sees_prompt_and_itself(prompt: int, length: int) -> Tensor:
    """[length, prompt + length] bool: the causal mask of the last `length` slots."""
    return torch.ones(length, prompt + length, dtype=torch.bool).tril(diagonal=prompt)


def flex_attend(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, *, scale: float | None) -> Tensor:
    """FlexAttention with a block mask, on CUDA; [b, heads, s, head_dim].

    The mask's kernel depends on shapes alone, and the compiler is told that they change, so a new length compiles
    nothing. The block mask is made once for a layout and used by all layers.
    """
    return _compiled_flex_attention()(
        query,
        key,
        value,
        block_mask=_block_mask(layout, query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


@functools.cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _block_mask(layout: RowLayout, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    if layout.mask is None:
        layout.mask = create_block_mask(
            make_mask_mod(layout, device),
            B=len(layout.rows),
            H=None,
            Q_LEN=layout.width if layout.own_slots is None else len(layout.own_slots),
            KV_LEN=layout.width,
            device=device,
            BLOCK_SIZE=FLEX_BLOCK,
        )
    return layout.mask


def _whole_mask(layout: RowLayout) -> Tensor:
    """[b, 1, s/cp, s] bool, of a layout that is split over context-parallel ranks."""
    if layout.mask is None:
        assert layout.own_slots is not None
        rows, queries, keys = (torch.arange(n) for n in (len(layout.rows), len(layout.own_slots), layout.width))
        mask_mod = make_mask_mod(layout, torch.device("cpu"))
        layout.mask = mask_mod(rows[:, None, None, None], torch.tensor(0), queries[:, None], keys[None, :])
    return layout.mask


def make_mask_mod(layout: RowLayout, device: torch.device) -> Any:
    """Who sees whom, as FlexAttention asks it: (row, head, query, key) -> bool, by their places in the tensors."""
    groups, branches = (ids.to(device) for ids in layout.segment_ids())

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        same_group = groups[b, q] == groups[b, k]
        own_or_prompt = (branches[b, k] == 0) | (branches[b, q] == branches[b, k])
        return (k <= q) & same_group & own_or_prompt

    own, gathered = layout.own_slots, layout.gathered_slots
    if own is None or gathered is None:
        return sees
    return lambda b, h, q, k: sees(b, h, own[q], gathered[k])


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, whose weight says if its gradient is to be summed over the tensor-parallel ranks."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
