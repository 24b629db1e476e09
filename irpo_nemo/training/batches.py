"""From pairs and demonstrations to micro batches of padded tokens, the same on every rank of a model replica.

Which examples form a global batch depends on the seed and the step alone, never on the layout; so a step number is all
that a resumed run needs. Within a global batch, examples are sorted by length and dealt to the data-parallel ranks; the
loss is a mean over the batch, so order inside it does not matter. An incomplete last batch is filled with examples of
weight 0.

Shapes: sequences = rows of a micro batch: its chosen completions, then, for pairs, its rejected ones in the same order.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from irpo_nemo.records import Demonstration, PreferencePair, ReferenceLogprob

LENGTH_MULTIPLE = 8
"""Rows are padded to a multiple of this, so that kernels meet few shapes."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt and one completion of it, as token ids, with the reference's summed log-prob (0 when there is none)."""

    prompt: Sequence[int]
    completion: Sequence[int]
    reference_logprob: float = 0.0

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one unit of a batch trains on: a pair, or, with `rejected` None, a demonstration."""

    chosen: Completion
    rejected: Completion | None

    @property
    def length(self) -> int:
        return max(row.length for row in (self.chosen, self.rejected) if row is not None)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that go through the model together."""

    tokens: Tensor
    """[sequences, seq] int64: prompt, completion, padding of 0."""
    completion_mask: Tensor
    """[sequences, seq] bool: True at position i when token i + 1, which its logits predict, is of the completion."""
    reference_logprobs: Tensor
    """[sequences] fp32, summed over the completion."""
    weights: Tensor
    """[examples] fp32: 1, or 0 for an example that only fills an incomplete batch."""
    num_tokens: int
    """Tokens that are not padding."""
    has_rejected: bool
    """Rows are [chosen; rejected], else chosen only."""

    @property
    def targets(self) -> Tensor:
        """[sequences, seq] int64: the token that each position predicts; meaningful where `completion_mask`."""
        return self.tokens.roll(-1, dims=1)

    @property
    def position_ids(self) -> Tensor:
        """[sequences, seq] int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)

    def to(self, device: torch.device) -> "MicroBatch":
        """Move every tensor to `device`."""
        return dataclasses.replace(
            self,
            tokens=self.tokens.to(device, non_blocking=True),
            completion_mask=self.completion_mask.to(device, non_blocking=True),
            reference_logprobs=self.reference_logprobs.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
        )


def examples_of_pairs(pairs: Sequence[PreferencePair], references: Sequence[ReferenceLogprob]) -> list[Example]:
    """Join each pair with the reference log-probs of its two completions, by candidate id."""
    logprobs = {reference.candidate_id: reference.logprob for reference in references}
    return [
        Example(
            chosen=Completion(
                prompt=pair.prompt_token_ids,
                completion=pair.chosen_token_ids,
                reference_logprob=logprobs[pair.chosen_id],
            ),
            rejected=Completion(
                prompt=pair.prompt_token_ids,
                completion=pair.rejected_token_ids,
                reference_logprob=logprobs[pair.rejected_id],
            ),
        )
        for pair in pairs
    ]


def examples_of_demonstrations(demonstrations: Sequence[Demonstration]) -> list[Example]:
    """Demonstrations as examples without a rejected side."""
    return [
        Example(chosen=Completion(prompt=item.prompt_token_ids, completion=item.token_ids), rejected=None)
        for item in demonstrations
    ]


def make_micro_batch(examples: Sequence[Example], weights: Sequence[float]) -> MicroBatch:
    """Pad the chosen rows, then the rejected rows, to one length. Examples are all pairs, or all demonstrations."""
    rejected = [example.rejected for example in examples if example.rejected is not None]
    rows = [example.chosen for example in examples] + rejected
    tokens, mask = pad_rows(rows)
    return MicroBatch(
        tokens=tokens,
        completion_mask=mask,
        reference_logprobs=torch.tensor([row.reference_logprob for row in rows], dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
        num_tokens=sum(row.length for row in rows),
        has_rejected=bool(rejected),
    )


def pad_rows(rows: Sequence[Completion]) -> tuple[Tensor, Tensor]:
    """Right-pad prompt + completion of each row; return tokens and completion mask, both [sequences, seq]."""
    longest = max(row.length for row in rows)
    width = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : row.length] = torch.tensor([*row.prompt, *row.completion])
        mask[index, len(row.prompt) - 1 : row.length - 1] = True
    return tokens, mask


class GlobalBatches(Dataset[list[MicroBatch]]):
    """Item i is this data-parallel rank's micro batches of optimizer step first_step + i."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        global_batch_size: int,
        micro_batch_size: int,
        num_steps: int,
        seed: int,
        rank: int,
        ranks: int,
        first_step: int = 0,
    ) -> None:
        self.examples = examples
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.num_steps = num_steps
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.first_step = first_step

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __getitem__(self, index: int) -> list[MicroBatch]:
        chosen = self.example_indices(self.first_step + index)
        weights = [1.0] * len(chosen) + [0.0] * (self.global_batch_size - len(chosen))
        filled = chosen + [chosen[0]] * (self.global_batch_size - len(chosen))
        batch = sorted(zip(filled, weights, strict=True), key=lambda item: self.examples[item[0]].length)
        share = batch[self.rank :: self.ranks]
        return [
            make_micro_batch([self.examples[i] for i, _ in part], [weight for _, weight in part])
            for start in range(0, len(share), self.micro_batch_size)
            if (part := share[start : start + self.micro_batch_size])
        ]

    def example_indices(self, step: int) -> list[int]:
        """The examples of one global batch, whatever the layout: a seeded shuffle of each epoch, cut into batches."""
        steps_per_epoch = count_steps(len(self.examples), self.global_batch_size, num_epochs=1, max_steps=None)
        epoch, position = divmod(step, steps_per_epoch)
        return shuffled(len(self.examples), self.seed, epoch)[
            position * self.global_batch_size : (position + 1) * self.global_batch_size
        ]


@functools.lru_cache(maxsize=1)
def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of one epoch."""
    order = list(range(count))
    random.Random(f"{seed} epoch {epoch}").shuffle(order)
    return order


def count_steps(num_examples: int, global_batch_size: int, *, num_epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a run: every example once an epoch, the last batch of an epoch perhaps incomplete."""
    steps = -(-num_examples // global_batch_size) * num_epochs
    return steps if max_steps is None else min(steps, max_steps)
