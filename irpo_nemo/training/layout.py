"""Where groups of one prompt and its completions stand in the rows of a micro batch, and who sees whom there.

A group is a stretch of a row: the prompt's slots, then each completion's. A slot sees the slots before it of its prompt
and of its own completion, nothing else. A completion's last token is no slot, for it predicts nothing; so the first
token of a completion is predicted by the prompt's last slot, and each further one by the slot before it.

`RowLayout` travels through Megatron as its `packed_seq_params`, the one argument that reaches every attention
untouched, activation recomputation included.

With context parallel, each rank of the group computes its own slots of every row. A row is cut into twice as many
stretches as there are ranks, and each rank takes one from either end: later slots see more, so this gives all ranks
about as much to do.

Shapes: cp = context-parallel size.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GroupSpan:
    """The slots of one group in its row."""

    start: int
    prompt: int
    """Slots of the prompt."""
    completions: tuple[int, ...]
    """Slots of each completion: its tokens but the last."""

    @property
    def stop(self) -> int:
        return self.start + self.prompt + sum(self.completions)

    def position_ids(self) -> Tensor:
        """[slots] int64: every completion continues the prompt."""
        parts = [torch.arange(self.prompt)]
        parts += [torch.arange(self.prompt, self.prompt + length) for length in self.completions]
        return torch.cat(parts)

    def predictors(self) -> Tensor:
        """[tokens] int64: the slot that predicts each token of each completion."""
        last_of_prompt = torch.tensor([self.start + self.prompt - 1])
        parts = []
        start = self.start + self.prompt
        for length in self.completions:
            parts += [last_of_prompt, torch.arange(start, start + length)]
            start += length
        return torch.cat(parts)


@dataclass(kw_only=True, eq=False)
class RowLayout(PackedSeqParams):
    """The groups of every row, and what follows from them."""

    qkv_format: str = "sbhd"
    rows: tuple[tuple[GroupSpan, ...], ...]
    width: int
    """Slots of a row."""
    position_ids: Tensor
    """[rows, width] int64."""
    predictors: Tensor
    """[tokens] int64: for each token of each completion, the slot that predicts it, as slot * rows + row."""
    targets: Tensor
    """[tokens] int64: these tokens."""
    own_slots: Tensor | None = None
    """[width/cp] int64: the slots of each row that this context-parallel rank computes; None for all."""
    gathered_slots: Tensor | None = None
    """[width] int64: the own slots of one rank after the other."""
    mask: Any = None
    """Who sees whom, as the attention in use asks for it; made by the first layer that needs it."""

    @property
    def max_position(self) -> int:
        """One more than the largest position."""
        return max(span.prompt + max(span.completions) for row in self.rows for span in row)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "RowLayout":
        """Move every tensor to `device`."""
        names = ("position_ids", "predictors", "targets")
        moved: dict[str, Any] = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return dataclasses.replace(self, **moved)

    def split_context(self, rank: int, size: int) -> "RowLayout":
        """The same rows, for one rank of a context-parallel group; `width` must be a multiple of 2 * size."""
        slots = [slots_of_context_rank(self.width, other, size).to(self.targets.device) for other in range(size)]
        return dataclasses.replace(self, own_slots=slots[rank], gathered_slots=torch.cat(slots))

    def own_predictors(self) -> tuple[Tensor, Tensor]:
        """Which tokens the own slots predict, and by which of them: indices into targets, and slot * rows + row."""
        assert self.own_slots is not None
        place_of_slot = torch.full((self.width,), -1, device=self.own_slots.device)
        place_of_slot[self.own_slots] = torch.arange(len(self.own_slots), device=self.own_slots.device)
        num_rows = len(self.rows)
        places = place_of_slot[self.predictors // num_rows]
        (tokens,) = torch.nonzero(places >= 0, as_tuple=True)
        return tokens, places[tokens] * num_rows + self.predictors[tokens] % num_rows

    def segment_ids(self) -> tuple[Tensor, Tensor]:
        """The group of each slot, and its completion, 0 for the prompt's; both [rows, width] int32, padding is -1."""
        groups = torch.full((len(self.rows), self.width), -1, dtype=torch.int32)
        branches = groups.clone()
        for row, spans in enumerate(self.rows):
            for number, span in enumerate(spans):
                groups[row, span.start : span.stop] = number
                branches[row, span.start : span.start + span.prompt] = 0
                start = span.start + span.prompt
                for branch, length in enumerate(span.completions, start=1):
                    branches[row, start : start + length] = branch
                    start += length
        return groups, branches


def slots_of_context_rank(width: int, rank: int, size: int) -> Tensor:
    """[width/cp] int64: one stretch from the row's start and one from its end, as TransformerEngine cuts rows, too."""
    assert width % (2 * size) == 0, f"{width} slots cannot be split over {size} context-parallel ranks"
    stretches = torch.arange(width).view(2 * size, -1)
    return torch.cat([stretches[rank], stretches[-1 - rank]])
