"""How far a step has come, read from the files that it writes anyway: parts, and metrics.jsonl. Serves terminal and
`irpo status`.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpo_nemo.artifacts import list_parts, read_json
from irpo_nemo.config import IRPOConfig, TrainingConfig
from irpo_nemo.pipeline import EVALUATION_SPLIT, TRAINING_SPLIT, Split, Step, splits_of
from irpo_nemo.run_folder import IterationFolder, RunFolder, TrainFolder
from irpo_nemo.sampling.part_statistics import PartStatistics, measure_speed, read_statistics
from irpo_nemo.sampling.split_settings import SplitSettings


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Something done of something to do."""

    done: int
    total: int
    unit: str
    detail: str = ""
    """Numbers worth a look: loss, speed."""
    seconds_left: float | None = None
    """At the speed measured last; None before there is one."""

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f"{describe_duration(self.seconds_left)} left"
        return ", ".join(text for text in (f"{self.done}/{self.total} {self.unit}", self.detail, left) if text)


def read_progress(config: IRPOConfig, step: Step) -> Progress | None:
    """The progress of a step at work; None where there is nothing to count."""
    folder = RunFolder(config.run_folder)
    if step.stage == "sft":
        demonstrations = count_rows(folder.model_zero.demonstrations)
        return _training_progress(folder.model_zero.train, count_steps(demonstrations, config.sft), config.sft)
    if step.iteration is None:
        return None
    iteration = folder.iteration(step.iteration)
    if step.stage == "trial":
        num_pairs = _count_learned_pairs(config, iteration)
        steps = count_steps(num_pairs, config.training)
        return _training_progress(iteration.trial.train, steps, config.training)
    if step.stage == "train":
        return _training_progress(iteration.train, _count_train_steps(config, iteration), config.training)
    if step.stage == "select":
        return _selection_progress(config, iteration)
    splits = splits_of(config, step.iteration)
    if step.stage == "sample":
        return _sampling_progress(iteration, splits, total=count_candidates(config, step.iteration))
    if step.stage == "grade":
        sampled = sum(len(list_parts(iteration.samples(split))) for split in splits)
        graded = sum(len(list_parts(iteration.graded(split))) for split in splits)
        return Progress(done=graded, total=sampled, unit="parts")
    return None


def _count_train_steps(config: IRPOConfig, iteration: IterationFolder) -> int:
    if config.selection.enabled:
        return int(read_json(iteration.selection)["chosen_step"])
    return count_steps(count_rows(iteration.pairs), config.training)


def _count_learned_pairs(config: IRPOConfig, iteration: IterationFolder) -> int:
    """Pairs of the problems that the trial does not leave out."""
    import pyarrow.parquet as pq

    from irpo_nemo.selection import split_problems
    from irpo_nemo.tasks import load_task

    learned = {problem.problem_id for problem in split_problems(config, load_task(config))[0]}
    return sum(
        name in learned for name in pq.read_table(iteration.pairs, columns=["problem_id"])["problem_id"].to_pylist()
    )


def _selection_progress(config: IRPOConfig, iteration: IterationFolder) -> Progress:
    steps = [entry["step"] for entry in read_json(iteration.trial.steps)]
    sampled = sum(len(list_parts(iteration.trial.samples(step))) for step in steps)
    parts = math.ceil(config.selection.num_problems / config.sampler.problems_per_part)
    return Progress(done=sampled, total=parts * len(steps), unit="parts")


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer; 0 when it is not there yet."""
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(path).metadata.num_rows) if path.exists() else 0


def read_last_metrics(folder: TrainFolder) -> dict[str, Any]:
    """The last whole line of metrics.jsonl; empty before the first step."""
    if not folder.metrics.exists():
        return {}
    lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return dict(json.loads(whole[-1])) if whole else {}


def _training_progress(folder: TrainFolder, total: int, training: TrainingConfig) -> Progress:
    metrics = read_last_metrics(folder)
    if not metrics:
        return Progress(done=0, total=total, unit="steps")
    detail = f"loss {metrics['loss/total']:.3f}, {metrics['pairs_per_second']:.1f} pairs/s"
    done = metrics["step"] + 1
    left = max(total - done, 0) * training.global_batch_size / metrics["pairs_per_second"]
    return Progress(done=done, total=total, unit="steps", detail=detail, seconds_left=left)


def count_steps(num_examples: int, training: TrainingConfig) -> int:
    """Optimizer steps of a training run; the last batch of an epoch may be incomplete."""
    steps = math.ceil(num_examples / training.global_batch_size) * training.num_epochs
    return steps if training.max_steps is None else min(steps, training.max_steps)


def count_candidates(config: IRPOConfig, iteration: int) -> int:
    """Completions that the sample stage may draw, gold solutions aside."""
    from irpo_nemo.tasks import load_task

    task = load_task(config)
    sizes = {EVALUATION_SPLIT: len(task.test_problems()), TRAINING_SPLIT: len(task.train_problems())}
    return sum(
        sizes[split] * SplitSettings.of(config, iteration=iteration, split=split, model_hash="").completions_per_problem
        for split in splits_of(config, iteration)
    )


def _sampling_progress(iteration: IterationFolder, splits: Iterable[Split], *, total: int) -> Progress:
    """Of all shards: what their finished parts hold, and how fast the last ones were drawn."""
    parts: list[PartStatistics] = []
    for split in splits:
        parts += read_statistics(iteration.sampling_statistics(split), iteration.samples(split))
    done = sum(part.completions + part.spared for part in parts)
    speed = measure_speed(parts)
    if speed is None:
        return Progress(done=done, total=total, unit="candidates")
    detail = f"{speed.tokens_per_second:.0f} tokens/s"
    left = max(total - done, 0) / speed.completions_per_second
    return Progress(done=done, total=total, unit="candidates", detail=detail, seconds_left=left)


def describe_duration(seconds: float) -> str:
    """90 s, 12 min or 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
