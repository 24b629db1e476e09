"""Attention over groups against plain attention with the whole mask, and that mask as FlexAttention asks for it."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from irpo_nemo.training.attention import GroupAttention, make_mask_mod
from irpo_nemo.training.batches import BatchOptions, examples_of_pairs, make_micro_batches, make_units
from irpo_nemo.training.layout import RowLayout
from tests.training.tiny import make_pairs_that_share, make_references

HEADS, KEY_VALUE_HEADS, HEAD_DIM = 4, 2, 8


def layout_of(*, share: bool, pack: bool) -> RowLayout:
    pairs = make_pairs_that_share(9)
    options = BatchOptions(max_tokens_per_micro_batch=10000, share_prompts=share, pack=pack)
    units = make_units(examples_of_pairs(pairs, make_references(pairs)), options)
    return make_micro_batches([units], options)[0].layout


def seen_by_definition(layout: RowLayout) -> Tensor:
    """[rows, width, width] bool, slot by slot from the spans."""
    seen = torch.zeros(len(layout.rows), layout.width, layout.width, dtype=torch.bool)
    for row, spans in enumerate(layout.rows):
        for span in spans:
            prompt = range(span.start, span.start + span.prompt)
            start = prompt.stop
            stretches = [range(0)]
            for length in span.completions:
                stretches.append(range(start, start + length))
                start += length
            for stretch in stretches:
                visible = [*prompt, *stretch]
                for position, slot in enumerate(visible):
                    seen[row, slot, visible[: position + 1]] = True
    return seen


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_attention_by_group_is_attention_with_the_whole_mask(share: bool, pack: bool) -> None:
    layout = layout_of(share=share, pack=pack)
    torch.manual_seed(0)
    rows, width = len(layout.rows), layout.width
    query = torch.randn(width, rows, HEADS, HEAD_DIM, requires_grad=True)
    key, value = (torch.randn(width, rows, KEY_VALUE_HEADS, HEAD_DIM, requires_grad=True) for _ in range(2))
    attention = GroupAttention(SimpleNamespace(attention_dropout=0.0), 1, None, "self")
    ours = attention(query, key, value, None, packed_seq_params=layout)

    seen = seen_by_definition(layout)
    padding = ~seen.any(-1)
    theirs = F.scaled_dot_product_attention(
        *(x.permute(1, 2, 0, 3) for x in (query, key, value)),
        attn_mask=(seen | padding[..., None])[:, None],
        enable_gqa=True,
    )
    theirs = theirs.masked_fill(padding[:, None, :, None], 0.0).permute(2, 0, 1, 3).flatten(2)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    found = torch.autograd.grad((ours * weights).sum(), (query, key, value))
    expected = torch.autograd.grad((theirs * weights).sum(), (query, key, value))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_the_mask_that_flex_attention_is_given_says_the_same(share: bool, pack: bool) -> None:
    layout = layout_of(share=share, pack=pack)
    mask_mod = make_mask_mod(layout, torch.device("cpu"))
    slots = torch.arange(layout.width)
    rows = torch.arange(len(layout.rows))
    asked = mask_mod(rows[:, None, None], torch.tensor(0), slots[None, :, None], slots[None, None, :])
    groups, _ = layout.segment_ids()
    is_real = (groups >= 0)[:, :, None]
    assert torch.equal(asked & is_real, seen_by_definition(layout))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_context_parallel_ranks_are_given_each_its_rows_of_the_mask(share: bool, size: int) -> None:
    layout = layout_of(share=share, pack=True)
    assert layout.width % (2 * size) == 0
    whole = seen_by_definition(layout)[0]
    for rank in range(size):
        part = layout.split_context(rank, size)
        assert part.own_slots is not None and part.gathered_slots is not None
        queries, keys = torch.arange(len(part.own_slots)), torch.arange(layout.width)
        mask_mod = make_mask_mod(part, torch.device("cpu"))
        asked = mask_mod(torch.tensor(0), torch.tensor(0), queries[:, None], keys[None, :])
        is_real = (layout.segment_ids()[0][0, part.own_slots] >= 0)[:, None]
        assert torch.equal(asked & is_real, whole[part.own_slots][:, part.gathered_slots])
