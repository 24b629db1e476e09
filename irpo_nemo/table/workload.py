"""How long the runs of a table will take, from what they have to draw and to train on.

The speeds are those of the quickstart (README): a 0.9M-parameter model on 2 idle cores. Work that runs share is counted
once, as it is done once.
"""

from collections.abc import Iterator
from typing import Any

from irpo_nemo.config import IRPOConfig, TrainingConfig
from irpo_nemo.pipeline import TRAINING_SPLIT, splits_of
from irpo_nemo.tasks import load_task

COMPLETIONS_PER_SECOND = 400.0
PAIRS_PER_SECOND = 64.0
DEMONSTRATIONS_PER_SECOND = 155.0
SECONDS_PER_ITERATION = 20.0
"""Of an iteration: processes that start, grading, pairing, reference log-probs, export."""


def estimate_seconds(config: IRPOConfig, known: set[str]) -> float:
    """Seconds of the run's work that is not `known` yet; adds it to `known`.

    A piece of work is known by all settings that it and the pieces before it depend on.
    """
    seconds, origin = 0.0, ""
    for settings, cost in _list_work(config):
        origin = f"{origin}\n{settings!r}"
        if origin not in known:
            known.add(origin)
            seconds += cost
    return seconds


def _list_work(config: IRPOConfig) -> Iterator[tuple[tuple[Any, ...], float]]:
    """(settings, seconds) of each piece of work, in order."""
    task = load_task(config)
    num_train, num_test = len(task.train_problems()), len(task.test_problems())
    if config.sft.enabled:
        # Only the arithmetic task has another number of demonstrations than of train problems.
        is_mixed = config.task.name == "arithmetic" and config.task.arithmetic.demonstrations == "mixed"
        available = config.task.arithmetic.num_demonstrations if is_mixed else num_train
        cost = _count_examples(available, config.sft) / DEMONSTRATIONS_PER_SECOND
        yield (config.seed, config.task, config.model, config.sft, config.parallel), cost
    else:
        yield (config.seed, config.task, config.model), 0.0
    for t in range(config.num_iterations + 1):
        splits = splits_of(config, t)
        completions = num_test * (1 + config.evaluation.num_samples)
        if TRAINING_SPLIT in splits:
            completions += num_train * config.sampling.num_candidates
        cost = completions / COMPLETIONS_PER_SECOND + SECONDS_PER_ITERATION
        yield (splits, config.sampling, config.evaluation, config.sampler, config.pairing.gold_solutions), cost
        if t < config.num_iterations:
            pairs = num_train * config.pairing.num_pairs_per_problem
            pairs = min(pairs, config.pairing.max_pairs or pairs)
            cost = _count_examples(pairs, config.training) / PAIRS_PER_SECOND
            yield (config.grading, config.pairing, config.loss, config.training), cost


def _count_examples(available: int, training: TrainingConfig) -> int:
    """Examples that pass through a training run."""
    wanted = available * training.num_epochs
    return wanted if training.max_steps is None else min(wanted, training.max_steps * training.global_batch_size)
