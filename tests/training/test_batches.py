"""Which examples form a batch, and how rows are laid out."""

import pytest
import torch

from irpo_nemo.training.batches import (
    Completion,
    Example,
    GlobalBatches,
    count_steps,
    examples_of_demonstrations,
    examples_of_pairs,
    make_micro_batch,
    pad_rows,
)
from tests.training.tiny import make_demonstrations, make_pairs, make_references


def batches_of(num_pairs: int, **changes: int) -> GlobalBatches:
    pairs = make_pairs(num_pairs)
    options = {"global_batch_size": 8, "micro_batch_size": 2, "num_steps": 6, "seed": 0, "rank": 0, "ranks": 1}
    return GlobalBatches(examples_of_pairs(pairs, make_references(pairs)), **(options | changes))


def weight_by_example(batches: GlobalBatches, index: int) -> dict[tuple[int, ...], float]:
    """Sum of weights of each example of a batch, the example known by its first row."""
    weights: dict[tuple[int, ...], float] = {}
    for micro in batches[index]:
        for row, weight in zip(micro.tokens.tolist(), micro.weights.tolist(), strict=False):
            key = tuple(row[: len(row) - row[::-1].index(1)])  # up to the end-of-sequence token
            weights[key] = weights.get(key, 0.0) + weight
    return weights


def test_rows_are_prompt_completion_and_padding() -> None:
    tokens, mask = pad_rows([Completion(prompt=[5, 6], completion=[7, 1]), Completion(prompt=[8], completion=[1])])
    assert tokens.tolist() == [[5, 6, 7, 1, 0, 0, 0, 0], [8, 1, 0, 0, 0, 0, 0, 0]]
    assert mask.int().tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]


def test_masked_positions_predict_the_completion() -> None:
    micro = make_micro_batch([Example(chosen=Completion(prompt=[5, 6], completion=[7, 9, 1]), rejected=None)], [1.0])
    assert micro.targets[micro.completion_mask].tolist() == [7, 9, 1]
    assert micro.position_ids.tolist() == [list(range(8))]
    assert micro.num_tokens == 5
    assert not micro.has_rejected


def test_chosen_rows_come_before_rejected_ones() -> None:
    pairs = make_pairs(3)
    micro = make_micro_batch(examples_of_pairs(pairs, make_references(pairs)), [1.0, 1.0, 0.0])
    assert micro.tokens.shape[0] == micro.reference_logprobs.shape[0] == 6
    rows = [pair.prompt_token_ids + pair.chosen_token_ids for pair in pairs]
    rows += [pair.prompt_token_ids + pair.rejected_token_ids for pair in pairs]
    for row, expected in zip(micro.tokens.tolist(), rows, strict=True):
        assert row[: len(expected)] == expected
    assert micro.weights.tolist() == [1.0, 1.0, 0.0]


def test_references_are_joined_by_candidate_not_by_position() -> None:
    pairs = make_pairs(4)
    references = make_references(pairs)
    by_id = {reference.candidate_id: reference.logprob for reference in references}
    examples = examples_of_pairs(pairs, references[::-1])
    for pair, example in zip(pairs, examples, strict=True):
        assert example.rejected is not None
        assert example.chosen.reference_logprob == by_id[pair.chosen_id]
        assert example.rejected.reference_logprob == by_id[pair.rejected_id]


def test_demonstrations_have_no_rejected_side() -> None:
    examples = examples_of_demonstrations(make_demonstrations(2))
    assert [example.rejected for example in examples] == [None, None]
    assert not make_micro_batch(examples, [1.0, 1.0]).has_rejected


def test_an_epoch_visits_every_example_once() -> None:
    batches = batches_of(21)
    for epoch in range(2):
        steps = [batches.example_indices(3 * epoch + i) for i in range(3)]
        assert [len(step) for step in steps] == [8, 8, 5]
        assert sorted(index for step in steps for index in step) == list(range(21))
    assert batches.example_indices(0) != batches.example_indices(3)


def test_the_seed_decides_the_order() -> None:
    assert batches_of(21).example_indices(0) == batches_of(21).example_indices(0)
    assert batches_of(21).example_indices(0) != batches_of(21, seed=1).example_indices(0)


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(1, 1), (1, 8), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_share_out_the_same_examples(index: int, ranks: int, micro_batch_size: int) -> None:
    expected = weight_by_example(batches_of(21), index)
    found: dict[tuple[int, ...], float] = {}
    for rank in range(ranks):
        batches = batches_of(21, rank=rank, ranks=ranks, micro_batch_size=micro_batch_size)
        assert [len(micro.weights) for micro in batches[index]] == [micro_batch_size] * (8 // ranks // micro_batch_size)
        for key, weight in weight_by_example(batches, index).items():
            found[key] = found.get(key, 0.0) + weight
    assert found == expected


def test_an_incomplete_batch_is_filled_with_examples_of_weight_0() -> None:
    batches = batches_of(21)
    weights = torch.cat([micro.weights for micro in batches[2]])
    assert len(weights) == 8 and weights.sum() == 5


def test_a_resumed_run_sees_the_same_batches() -> None:
    whole, rest = batches_of(21), batches_of(21, first_step=4)
    assert len(rest) == 2
    assert all(
        torch.equal(a.tokens, b.tokens) and torch.equal(a.weights, b.weights)
        for a, b in zip(whole[4], rest[0], strict=True)
    )


def test_rows_of_a_micro_batch_are_alike_in_length() -> None:
    lengths = [micro.tokens.shape[1] for micro in batches_of(16)[0]]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_steps_are_counted_over_epochs_and_cut_by_max_steps() -> None:
    assert count_steps(21, 8, num_epochs=1, max_steps=None) == 3
    assert count_steps(24, 8, num_epochs=2, max_steps=None) == 6
    assert count_steps(21, 8, num_epochs=2, max_steps=4) == 4
    assert count_steps(21, 8, num_epochs=2, max_steps=40) == 6
