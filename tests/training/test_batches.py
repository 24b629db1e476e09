"""Which examples form a batch, how they are grouped, dealt and laid out."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from irpo_nemo.config import ParallelConfig, TrainingConfig
from irpo_nemo.training.batches import (
    BatchOptions,
    Completion,
    Example,
    GlobalBatches,
    MicroBatch,
    batch_options,
    count_steps,
    examples_of_demonstrations,
    examples_of_pairs,
    make_micro_batches,
    make_units,
    plan_micro_batches,
)
from irpo_nemo.training.layout import slots_of_context_rank
from tests.training.tiny import make_demonstrations, make_pairs, make_pairs_that_share, make_references

SHARED = BatchOptions(max_tokens_per_micro_batch=100)
ALONE = BatchOptions(max_tokens_per_micro_batch=100, share_prompts=False)
LAYOUTS = [
    BatchOptions(max_tokens_per_micro_batch=limit, share_prompts=share, pack=pack)
    for limit in (1, 100, 10000)
    for share in (False, True)
    for pack in (False, True)
]


def batches_of(num_pairs: int, **changes: Any) -> GlobalBatches:
    pairs = make_pairs_that_share(num_pairs)
    options = {"global_batch_size": 8, "options": SHARED, "num_steps": 6, "seed": 0, "rank": 0, "ranks": 1}
    return GlobalBatches(examples_of_pairs(pairs, make_references(pairs)), **(options | changes))


def pair(prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Example:
    return Example(
        chosen=Completion(prompt=prompt, completion=chosen, reference_logprob=-1.5),
        rejected=Completion(prompt=prompt, completion=rejected, reference_logprob=-2.5),
    )


def completions_of(micro: MicroBatch) -> list[list[int]]:
    """The completions of a micro batch as the model is asked for them."""
    return [part.tolist() for part in micro.layout.targets.split(micro.completion_lengths.tolist())]


def pairs_of(micro: MicroBatch) -> list[tuple[tuple[int, ...], tuple[int, ...], float, float]]:
    """Chosen and rejected tokens of each example, and their references."""
    completions = completions_of(micro)
    assert micro.rejected is not None
    return [
        (tuple(completions[chosen]), tuple(completions[rejected]), *references)
        for chosen, rejected, references in zip(
            micro.chosen.tolist(), micro.rejected.tolist(), micro.reference_logprobs.t().tolist(), strict=True
        )
    ]


def test_a_shared_prompt_and_completion_stand_once() -> None:
    examples = [pair((5, 6), (7, 8, 1), (9, 1)), pair((5, 6), (7, 8, 1), (4, 4, 4, 1)), pair((3,), (1,), (2, 1))]
    (micro,) = make_micro_batches([make_units(examples, SHARED)], SHARED)
    assert micro.tokens.tolist() == [[5, 6, 7, 8, 9, 4, 4, 4, 3, 2, 0, 0, 0, 0, 0, 0]]
    assert micro.position_ids.tolist()[0][:10] == [0, 1, 2, 3, 2, 2, 3, 4, 0, 1]
    assert completions_of(micro) == [[7, 8, 1], [9, 1], [4, 4, 4, 1], [1], [2, 1]]
    assert micro.layout.predictors.tolist() == [1, 2, 3, 1, 4, 1, 5, 6, 7, 8, 8, 9]
    assert micro.chosen.tolist() == [0, 0, 3]
    assert micro.rejected is not None and micro.rejected.tolist() == [1, 2, 4]
    assert micro.reference_logprobs.tolist() == [[-1.5] * 3, [-2.5] * 3]
    assert micro.num_tokens == 10


def test_without_sharing_each_completion_has_its_own_prompt_and_without_packing_its_own_row() -> None:
    examples = [pair((5, 6), (7, 8, 1), (9, 1))]
    (micro,) = make_micro_batches([make_units(examples, ALONE)], dataclasses.replace(ALONE, pack=False))
    assert micro.tokens.tolist() == [[5, 6, 7, 8, 0, 0, 0, 0], [5, 6, 9, 0, 0, 0, 0, 0]]
    assert micro.layout.predictors.tolist() == [2, 4, 6, 3, 5]  # slot * rows + row
    assert completions_of(micro) == [[7, 8, 1], [9, 1]]


def test_segments_say_who_sees_whom() -> None:
    examples = [pair((5, 6), (7, 8, 1), (9, 1)), pair((3,), (1,), (2, 1))]
    (micro,) = make_micro_batches([make_units(examples, SHARED)], SHARED)
    groups, branches = micro.layout.segment_ids()
    assert groups.tolist() == [[0, 0, 0, 0, 0, 1, 1, -1]]
    assert branches.tolist() == [[0, 0, 1, 1, 2, 0, 2, -1]]


@pytest.mark.parametrize("options", LAYOUTS)
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_layout_holds_the_same_pairs_and_references(options: BatchOptions, ranks: int) -> None:
    pairs = make_pairs_that_share(21)
    references = {reference.candidate_id: reference.logprob for reference in make_references(pairs)}
    expected = {
        (tuple(pair.chosen_token_ids), tuple(pair.rejected_token_ids)): (
            references[pair.chosen_id],
            references[pair.rejected_id],
        )
        for pair in (pairs[i] for i in batches_of(21).example_indices(0))
    }
    assert len(expected) == 8
    found: list[Any] = []
    lengths = set()
    for rank in range(ranks):
        batch = batches_of(21, options=options, rank=rank, ranks=ranks)[0]
        lengths.add(len(batch))
        for micro in batch:
            found += [
                item for item, weight in zip(pairs_of(micro), micro.weights.tolist(), strict=True) if weight == 1.0
            ]
    assert len(lengths) == 1, "every rank has the same number of micro batches"
    assert sorted(item[:2] for item in found) == sorted(expected)
    assert all(item[2:] == pytest.approx(expected[item[:2]]) for item in found)


@pytest.mark.parametrize("pack", [False, True])
def test_micro_batches_stay_under_the_limit(pack: bool) -> None:
    options = BatchOptions(max_tokens_per_micro_batch=150, pack=pack)
    for step in range(3):
        for micro in batches_of(21, options=options)[step]:
            spans = [span for row in micro.layout.rows for span in row]
            slots = len(micro.layout.rows) * max(row[-1].stop for row in micro.layout.rows)
            assert slots <= 150 or len(spans) == 1


def test_a_pair_longer_than_the_limit_goes_alone() -> None:
    batch = batches_of(21, options=BatchOptions(max_tokens_per_micro_batch=1))[0]
    assert [len(micro.weights) for micro in batch] == [1] * 8


def test_pairs_of_a_problem_are_cut_where_they_exceed_the_limit() -> None:
    examples = [pair((5,) * 10, (number,) * 20 + (1,), (1,)) for number in range(6)]
    units = make_units(examples, BatchOptions(max_tokens_per_micro_batch=50))
    assert [len(unit.examples) for unit in units] == [2, 2, 2]
    assert [unit.num_tokens for unit in units] == [50, 50, 50]


def test_ranks_are_given_nearly_the_same_number_of_tokens() -> None:
    examples = examples_of_pairs(pairs := make_pairs(64), make_references(pairs))
    plan = plan_micro_batches(make_units(examples, ALONE), ranks=4, options=ALONE)
    loads = [sum(unit.num_tokens for units in share for unit in units) for share in plan]
    assert max(loads) < 1.05 * min(loads)


def test_a_rank_without_examples_gets_one_of_weight_0() -> None:
    shares = [batches_of(21, global_batch_size=2, rank=rank, ranks=4)[0] for rank in range(4)]
    assert sum(float(micro.weights.sum()) for share in shares for micro in share) == 2.0
    assert all(len(share) == 1 for share in shares)


def test_an_interleaved_schedule_gets_multiples_of_its_stages_all_of_one_shape() -> None:
    for pack in (False, True):
        options = dataclasses.replace(SHARED, pack=pack, interleaved_stages=3)
        plain = dataclasses.replace(options, interleaved_stages=1)
        for step in range(3):
            batch = batches_of(21, options=options)[step]
            assert len(batch) % 3 == 0
            assert len({micro.tokens.shape for micro in batch}) == 1
            found = [pair for micro in batch if micro.weights.all() for pair in pairs_of(micro)]
            assert sorted(found) == sorted(
                pair for micro in batches_of(21, options=plain)[step] for pair in pairs_of(micro)
            )


def test_micro_batches_that_only_fill_the_schedule_weigh_nothing() -> None:
    options = BatchOptions(max_tokens_per_micro_batch=10000, interleaved_stages=4)
    (batch,) = [batches_of(21, global_batch_size=1, options=options)[0]]
    assert [micro.weights.tolist() for micro in batch] == [[1.0], [0.0], [0.0], [0.0]]


def test_padding_rows_stand_below_and_predict_nothing() -> None:
    examples = [pair((5, 6), (7, 8, 1), (9, 1)), pair((3,), (1,), (2, 1))]
    options = BatchOptions(max_tokens_per_micro_batch=100, share_prompts=False, pack=False, interleaved_stages=2)
    large, small = make_micro_batches([make_units(examples, options), make_units(examples[1:], options)], options)
    assert large.tokens.shape == small.tokens.shape == (4, 8)
    assert small.tokens[2:].eq(0).all()
    assert small.layout.rows[2:] == ((), ())
    assert small.layout.predictors.tolist() == [0, 1, 5]  # slot * rows + row


@pytest.mark.parametrize(
    ("tensor", "sequence", "context", "multiple"),
    [(1, False, 1, 8), (3, False, 1, 8), (3, True, 1, 24), (1, False, 2, 8), (1, False, 8, 16), (4, True, 2, 16)],
)
def test_rows_can_be_split_over_the_ranks_that_share_them(
    tensor: int, sequence: bool, context: int, multiple: int
) -> None:
    parallel = ParallelConfig(
        tensor_model_parallel_size=tensor, sequence_parallel=sequence, context_parallel_size=context
    )
    assert batch_options(TrainingConfig(), parallel).row_multiple == multiple


@pytest.mark.parametrize("size", [1, 2, 4])
def test_context_parallel_ranks_share_the_slots_and_what_they_predict(size: int) -> None:
    options = BatchOptions(max_tokens_per_micro_batch=10000, row_multiple=2 * size)
    layout = batches_of(21, options=options)[0][0].layout
    parts = [layout.split_context(rank, size) for rank in range(size)]
    slots = [part.own_slots for part in parts if part.own_slots is not None]
    assert sorted(torch.cat(slots).tolist()) == list(range(layout.width))
    assert len({len(own) for own in slots}) == 1
    tokens = []
    for part, own in zip(parts, slots, strict=True):
        own_tokens, predictors = part.own_predictors()
        assert torch.equal(own[predictors], layout.predictors[own_tokens])
        tokens += own_tokens.tolist()
    assert sorted(tokens) == list(range(len(layout.targets)))


def test_each_context_parallel_rank_has_a_stretch_from_either_end() -> None:
    assert [slots_of_context_rank(16, rank, 2).tolist() for rank in range(2)] == [
        [0, 1, 2, 3, 12, 13, 14, 15],
        [4, 5, 6, 7, 8, 9, 10, 11],
    ]


def test_references_are_joined_by_candidate_not_by_position() -> None:
    pairs = make_pairs(4)
    references = make_references(pairs)
    by_id = {reference.candidate_id: reference.logprob for reference in references}
    examples = examples_of_pairs(pairs, references[::-1])
    for known, example in zip(pairs, examples, strict=True):
        assert example.rejected is not None
        assert example.chosen.reference_logprob == by_id[known.chosen_id]
        assert example.rejected.reference_logprob == by_id[known.rejected_id]


def test_demonstrations_have_no_rejected_side() -> None:
    examples = examples_of_demonstrations(make_demonstrations(2))
    (micro,) = make_micro_batches([make_units(examples, SHARED)], SHARED)
    assert micro.rejected is None
    assert micro.chosen.tolist() == [0, 1]


@pytest.mark.parametrize("order", ["shuffled", "by_problem"])
def test_an_epoch_visits_every_example_once(order: str) -> None:
    batches = batches_of(21, order=order)
    for epoch in range(2):
        steps = [batches.example_indices(3 * epoch + i) for i in range(3)]
        assert [len(step) for step in steps] == [8, 8, 5]
        assert sorted(index for step in steps for index in step) == list(range(21))
    assert batches.example_indices(0) != batches.example_indices(3)


def test_by_problem_keeps_the_pairs_of_a_problem_together() -> None:
    batches = batches_of(21, order="by_problem")
    epoch = [index for step in range(3) for index in batches.example_indices(step)]
    prompts = [batches.examples[index].chosen.prompt for index in epoch]
    changes = sum(left != right for left, right in itertools.pairwise(prompts))
    assert changes == len(set(prompts)) - 1


def test_the_seed_decides_the_order() -> None:
    assert batches_of(21).example_indices(0) == batches_of(21).example_indices(0)
    assert batches_of(21).example_indices(0) != batches_of(21, seed=1).example_indices(0)


def test_a_resumed_run_sees_the_same_batches() -> None:
    whole, rest = batches_of(21), batches_of(21, first_step=4)
    assert len(rest) == 2
    assert all(
        torch.equal(a.tokens, b.tokens) and torch.equal(a.weights, b.weights)
        for a, b in zip(whole[4], rest[0], strict=True)
    )


def test_steps_are_counted_over_epochs_and_cut_by_max_steps() -> None:
    assert count_steps(21, 8, num_epochs=1, max_steps=None) == 3
    assert count_steps(24, 8, num_epochs=2, max_steps=None) == 6
    assert count_steps(21, 8, num_epochs=2, max_steps=4) == 4
    assert count_steps(21, 8, num_epochs=2, max_steps=40) == 6
