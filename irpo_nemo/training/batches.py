"""From pairs and demonstrations to micro batches of tokens, the same on every rank of a model replica.

Which examples form a global batch depends on the seed and the step alone, never on the layout; so a step number is all
that a resumed run needs. Within a global batch the loss is a mean, so how its examples are laid out does not matter:

    share_prompts   examples with the same prompt become one group: the prompt once, then each different completion
                    once, however many pairs use it; else each completion stands alone behind its own prompt
    pack            the groups of a micro batch stand in one row without padding between them; else each has a row of
                    its own, padded to the longest

A completion's last token predicts nothing, so it is a target but never an input. Groups are dealt to the data-parallel
ranks and cut into micro batches of at most `max_tokens_per_micro_batch` slots, balanced by tokens, the same number on
each rank. A micro batch without a group of its own gets one of weight 0. Megatron's interleaved pipeline schedule wants
micro batches in multiples of the pipeline's stages, all of one shape.

Shapes: rows = rows of a micro batch, width = slots of a row, completions = those of the micro batch, tokens = all the
tokens of these completions, one after the other.
"""

import dataclasses
import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from irpo_nemo.config import ParallelConfig, TrainingConfig
from irpo_nemo.records import Demonstration, PreferencePair, ReferenceLogprob
from irpo_nemo.training.layout import GroupSpan, RowLayout

_ROW_MULTIPLE = 8
"""Rows are padded to a multiple of this, which tensor cores ask for."""
_FP8_SLOTS = 16
"""Transformer Engine multiplies in FP8 what has a multiple of so many rows on each rank."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt and one completion of it, as token ids, with the reference's summed log-prob (0 when there is none)."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    reference_logprob: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one unit of a batch trains on: a pair, or, with `rejected` None, a demonstration."""

    chosen: Completion
    rejected: Completion | None

    @property
    def completions(self) -> tuple[Completion, ...]:
        return (self.chosen,) if self.rejected is None else (self.chosen, self.rejected)


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a global batch is laid out."""

    max_tokens_per_micro_batch: int
    share_prompts: bool = True
    pack: bool = True
    row_multiple: int = _ROW_MULTIPLE
    """Slots of a row are a multiple of this, so that ranks can split them evenly."""
    interleaved_stages: int = 1
    """Stages that an interleaved pipeline schedule goes around; 1 where the schedule is a plain one."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt and different completions of it, each of which sees the prompt and itself."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that go into the model."""
        return len(self.prompt) + sum(len(completion) - 1 for completion in self.completions)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Examples that stay in one micro batch, because they share groups."""

    examples: tuple[Example, ...]
    groups: tuple[Group, ...]
    weight: float = 1.0

    @property
    def num_tokens(self) -> int:
        return sum(group.num_tokens for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Groups that go through the model together, and the examples that are made of their completions."""

    tokens: Tensor
    """[rows, width] int64; padding is 0."""
    position_ids: Tensor
    """[rows, width] int64; a completion's positions continue its prompt's."""
    layout: RowLayout
    """Which slot sees which, and which of them predicts which token."""
    completion_lengths: Tensor
    """[completions] int64, tokens of each."""
    chosen: Tensor
    """[examples] int64: index of the completion."""
    rejected: Tensor | None
    """[examples] int64; None for demonstrations."""
    reference_logprobs: Tensor
    """[2, examples] fp32: chosen, rejected (0 without); summed over the completion."""
    weights: Tensor
    """[examples] fp32: 1, or 0 for an example that only keeps a rank busy."""
    num_tokens: int
    """Slots that are not padding."""

    def to(self, device: torch.device) -> "MicroBatch":
        """Move every tensor to `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, RowLayout))
        }
        return dataclasses.replace(self, **moved)


def batch_options(training: TrainingConfig, parallel: ParallelConfig) -> BatchOptions:
    """How the configuration wants global batches laid out."""
    is_interleaved = parallel.virtual_pipeline_model_parallel_size > 1
    splits = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    if parallel.context_parallel_size > 1:
        splits *= 2 * parallel.context_parallel_size
    return BatchOptions(
        max_tokens_per_micro_batch=training.max_tokens_per_micro_batch,
        share_prompts=training.share_prompts,
        pack=training.pack,
        row_multiple=math.lcm(_ROW_MULTIPLE, splits) if training.fp8 is None else _FP8_SLOTS * splits,
        interleaved_stages=parallel.pipeline_model_parallel_size if is_interleaved else 1,
    )


def examples_of_pairs(pairs: Sequence[PreferencePair], references: Sequence[ReferenceLogprob]) -> list[Example]:
    """Join each pair with the reference log-probs of its two completions, by candidate id."""
    logprobs = {reference.candidate_id: reference.logprob for reference in references}

    def completion(pair: PreferencePair, candidate_id: str, token_ids: list[int]) -> Completion:
        return Completion(
            prompt=tuple(pair.prompt_token_ids),
            completion=tuple(token_ids),
            reference_logprob=logprobs[candidate_id],
        )

    return [
        Example(
            chosen=completion(pair, pair.chosen_id, pair.chosen_token_ids),
            rejected=completion(pair, pair.rejected_id, pair.rejected_token_ids),
        )
        for pair in pairs
    ]


def examples_of_demonstrations(demonstrations: Sequence[Demonstration]) -> list[Example]:
    """Demonstrations as examples without a rejected side."""
    return [
        Example(chosen=Completion(prompt=tuple(item.prompt_token_ids), completion=tuple(item.token_ids)), rejected=None)
        for item in demonstrations
    ]


def make_units(examples: Sequence[Example], options: BatchOptions) -> list[Unit]:
    """Put examples with the same prompt into units of at most `max_tokens_per_micro_batch`, if prompts are shared.

    Units come in the order of their first example.
    """
    if not options.share_prompts:
        return [_make_unit([example], share=False) for example in examples]
    by_prompt: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        by_prompt.setdefault(example.chosen.prompt, []).append(example)
    units = []
    for members in by_prompt.values():
        for part in _cut(members, options.max_tokens_per_micro_batch):
            units.append(_make_unit(part, share=True))
    return units


def _cut(members: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Cut examples of one prompt where their shared tokens would exceed `max_tokens`; one example always fits."""
    parts: list[list[Example]] = []
    seen: set[tuple[int, ...]] = set()
    num_tokens = 0
    for example in members:
        new = {item.completion for item in example.completions} - seen
        added = sum(len(completion) - 1 for completion in new)
        if not parts or num_tokens + added > max_tokens:
            parts.append([])
            seen = set()
            new = {item.completion for item in example.completions}
            num_tokens, added = len(example.chosen.prompt), sum(len(completion) - 1 for completion in new)
        parts[-1].append(example)
        seen |= new
        num_tokens += added
    return parts


def _make_unit(examples: Sequence[Example], *, share: bool) -> Unit:
    completions = [item.completion for example in examples for item in example.completions]
    prompt = examples[0].chosen.prompt
    if share:
        groups = [Group(prompt=prompt, completions=tuple(dict.fromkeys(completions)))]
    else:
        groups = [Group(prompt=prompt, completions=(completion,)) for completion in completions]
    return Unit(examples=tuple(examples), groups=tuple(groups))


def plan_micro_batches(units: Sequence[Unit], *, ranks: int, options: BatchOptions) -> list[list[list[Unit]]]:
    """Deal units to ranks and micro batches: result[rank][micro batch] is a list of units, none of them empty.

    As few micro batches as fit, each unit, longest first, to the emptiest; a unit that exceeds the limit alone goes
    alone. Every rank computes the same plan.
    """
    order = sorted(range(len(units)), key=lambda index: (-units[index].num_tokens, index))
    total = sum(unit.num_tokens for unit in units)
    most = -(-len(units) // ranks)
    fewest = min(most, -(-total // (options.max_tokens_per_micro_batch * ranks)))
    count = _round_up(fewest, options.interleaved_stages)
    while True:
        bins = _fill_bins([units[index] for index in order], count * ranks)
        if count >= most or all(_num_slots(members, options) <= options.max_tokens_per_micro_batch for members in bins):
            break
        count += options.interleaved_stages
    filler = dataclasses.replace(units[order[-1]], weight=0.0)
    bins = [members or [filler] for members in bins]
    return [bins[rank::ranks] for rank in range(ranks)]


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _fill_bins(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    bins: list[list[Unit]] = [[] for _ in range(count)]
    loads = [(0, index) for index in range(count)]
    for unit in units:
        load, index = min(loads)
        bins[index].append(unit)
        loads[index] = (load + unit.num_tokens, index)
    return bins


def _num_slots(units: Sequence[Unit], options: BatchOptions) -> int:
    """Tokens of a packed row, or rows times the longest. One unit counts as 0: there is no smaller micro batch."""
    if len(units) < 2:
        return 0
    sizes = [group.num_tokens for unit in units for group in unit.groups]
    return sum(sizes) if options.pack else max(sizes) * len(sizes)


def make_micro_batches(parts: Sequence[Sequence[Unit]], options: BatchOptions) -> list[MicroBatch]:
    """Lay the groups of each part's units out in rows. Examples are all pairs, or all demonstrations."""
    rows_of_parts = [_make_rows(units, pack=options.pack) for units in parts]
    shapes = [(len(rows), _round_up(max(map(_count_tokens, rows)), options.row_multiple)) for rows in rows_of_parts]
    if options.interleaved_stages > 1:
        shapes = [(max(rows for rows, _ in shapes), max(width for _, width in shapes))] * len(parts)
    return [_lay_out(*part) for part in zip(parts, rows_of_parts, shapes, strict=True)]


def _make_rows(units: Sequence[Unit], *, pack: bool) -> list[list[Group]]:
    groups = [group for unit in units for group in unit.groups]
    return [groups] if pack else [[group] for group in groups]


def _count_tokens(groups: Sequence[Group]) -> int:
    return sum(group.num_tokens for group in groups)


def _lay_out(units: Sequence[Unit], rows: Sequence[Sequence[Group]], shape: tuple[int, int]) -> MicroBatch:
    """Put rows of groups into tensors of [rows, width], which leave room for padding at the right and below."""
    num_rows, width = shape
    tokens = torch.zeros(shape, dtype=torch.int64)
    position_ids = torch.zeros_like(tokens)
    spans: list[list[GroupSpan]] = [[] for _ in range(num_rows)]
    predictors: list[Tensor] = []
    for index, row in enumerate(rows):
        start = 0
        for group in row:
            span = GroupSpan(
                start=start, prompt=len(group.prompt), completions=tuple(len(item) - 1 for item in group.completions)
            )
            values = [*group.prompt, *(token for item in group.completions for token in item[:-1])]
            tokens[index, start : span.stop] = torch.tensor(values)
            position_ids[index, start : span.stop] = span.position_ids()
            predictors.append(span.predictors() * num_rows + index)
            spans[index].append(span)
            start = span.stop
    completions = [completion for row in rows for group in row for completion in group.completions]
    layout = RowLayout(
        rows=tuple(map(tuple, spans)),
        width=width,
        position_ids=position_ids,
        predictors=torch.cat(predictors),
        targets=torch.tensor([token for completion in completions for token in completion]),
    )
    return MicroBatch(
        tokens=tokens,
        position_ids=position_ids,
        layout=layout,
        completion_lengths=torch.tensor([len(completion) for completion in completions]),
        **_example_tensors(units),
        num_tokens=sum(map(_count_tokens, rows)),
    )


def _example_tensors(units: Sequence[Unit]) -> dict[str, Any]:
    """chosen, rejected, reference_logprobs and weights of a micro batch."""
    chosen: list[int] = []
    rejected: list[int] = []
    first = 0
    for unit in units:
        completions = [completion for group in unit.groups for completion in group.completions]
        if len(unit.groups) == 1:  # one group holds different completions, so their tokens tell which is which
            position = {completion: first + index for index, completion in enumerate(completions)}
            chosen += [position[example.chosen.completion] for example in unit.examples]
            rejected += [position[item.rejected.completion] for item in unit.examples if item.rejected is not None]
        else:  # one example, whose two completions stand alone
            chosen.append(first)
            rejected.append(first + 1)
        first += len(completions)
    examples = [example for unit in units for example in unit.examples]
    references = [
        [example.chosen.reference_logprob for example in examples],
        [0.0 if example.rejected is None else example.rejected.reference_logprob for example in examples],
    ]
    return {
        "chosen": torch.tensor(chosen),
        "rejected": torch.tensor(rejected) if rejected else None,
        "reference_logprobs": torch.tensor(references, dtype=torch.float32),
        "weights": torch.tensor([unit.weight for unit in units for _ in unit.examples], dtype=torch.float32),
    }


class GlobalBatches(Dataset[list[MicroBatch]]):
    """Item i is this data-parallel rank's micro batches of optimizer step first_step + i."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        global_batch_size: int,
        options: BatchOptions,
        num_steps: int,
        seed: int,
        rank: int,
        ranks: int,
        first_step: int = 0,
        order: str = "shuffled",
    ) -> None:
        self.examples = examples
        self.global_batch_size = global_batch_size
        self.options = options
        self.num_steps = num_steps
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.first_step = first_step
        self.order = order

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __getitem__(self, index: int) -> list[MicroBatch]:
        examples = [self.examples[i] for i in self.example_indices(self.first_step + index)]
        plan = plan_micro_batches(make_units(examples, self.options), ranks=self.ranks, options=self.options)
        return make_micro_batches(plan[self.rank], self.options)

    def example_indices(self, step: int) -> list[int]:
        """The examples of one global batch, whatever the layout: a seeded shuffle of each epoch, cut into batches.

        By problem, the problems are shuffled, and the examples of one stand next to each other.
        """
        steps_per_epoch = count_steps(len(self.examples), self.global_batch_size, num_epochs=1, max_steps=None)
        epoch, position = divmod(step, steps_per_epoch)
        batch = slice(position * self.global_batch_size, (position + 1) * self.global_batch_size)
        if self.order == "shuffled":
            return shuffled(len(self.examples), self.seed, epoch)[batch]
        problems = self._by_prompt
        order = [index for problem in shuffled(len(problems), self.seed, epoch) for index in problems[problem]]
        return order[batch]

    @functools.cached_property
    def _by_prompt(self) -> list[list[int]]:
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for index, example in enumerate(self.examples):
            by_prompt.setdefault(example.chosen.prompt, []).append(index)
        return list(by_prompt.values())


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
