"""What a run has to show: one point for each optimizer step and for each M_t measured, in the order of the run.

Only settled steps count: those that a checkpoint covers. A killed run takes the others again, with other times and, on
a GPU, slightly other values, and a tracker cannot take a point back. So a later list of a run's points begins with the
earlier one.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpo_nemo.artifacts import read_json
from irpo_nemo.config import IRPOConfig
from irpo_nemo.pipeline import Step, plan
from irpo_nemo.reporting.results import read_metrics
from irpo_nemo.run_folder import RunFolder, TrainFolder

TRAINING_STAGES = {"sft": "sft/step", "trial": "trial/step", "train": "training_step"}
"""Stages that train, and the axis of each, which goes on from one iteration to the next."""

EVALUATION_AXIS = "iteration"
AXES = (*TRAINING_STAGES.values(), EVALUATION_AXIS)

_CHECKPOINT = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Point:
    """Values at one place of an axis."""

    axis: str
    """One of AXES."""
    x: int
    values: dict[str, float]
    """By TensorBoard's names, those of sft and trial with a prefix; what is not known is left out."""


def read_points(config: IRPOConfig) -> list[Point]:
    """The points of what is done, and of the training at work up to its newest checkpoint."""
    folder = RunFolder(config.run_folder)
    points: list[Point] = []
    steps_before: Counter[str] = Counter()
    for step in plan(config):
        if step.stage == "grade" and step.state == "done":
            points.append(_evaluation_point(folder, step))
        elif step.stage in TRAINING_STAGES:
            trained = list(_training_points(folder, step, steps_before[step.stage]))
            points += trained
            steps_before[step.stage] += len(trained)
        if step.state != "done":
            break  # what stands behind it, if anything, is of an earlier attempt
    return points


def _training_points(folder: RunFolder, step: Step, steps_before: int) -> Iterator[Point]:
    prefix = "" if step.stage == "train" else f"{step.stage}/"
    for line in _settled_lines(_train_folder(folder, step), step):
        values = {f"{prefix}{name}": value for name, value in _known(line).items() if name != "step"}
        if step.iteration is not None:
            values |= {f"{prefix}iteration": float(step.iteration), f"{prefix}iteration_step": float(line["step"])}
        yield Point(TRAINING_STAGES[step.stage], steps_before + line["step"], values)


def _train_folder(folder: RunFolder, step: Step) -> TrainFolder:
    if step.iteration is None:
        return folder.model_zero.train
    iteration = folder.iteration(step.iteration)
    return iteration.trial.train if step.stage == "trial" else iteration.train


def _evaluation_point(folder: RunFolder, step: Step) -> Point:
    assert step.iteration is not None
    evaluation = read_json(folder.iteration(step.iteration).evaluation)
    low, high = evaluation["accuracy_ci95"]
    values = {
        "accuracy": evaluation["accuracy"],
        "accuracy_ci95_low": low,
        "accuracy_ci95_high": high,
        "majority_vote": (evaluation["majority_vote"] or {}).get("accuracy"),
        "sample_accuracy": evaluation["sample_accuracy"],
        "unparsable_rate": evaluation["unparsable_rate"],
        **{f"pass_at_{k}": rate for k, rate in evaluation["pass_at_k"].items()},
    }
    return Point(EVALUATION_AXIS, step.iteration, {f"evaluation/{name}": x for name, x in _known(values).items()})


def _known(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def _settled_lines(folder: TrainFolder, step: Step) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that no restart will write again."""
    if step.state in ("waiting", "stale"):
        return []
    lines = read_metrics(folder.metrics)
    if step.state == "done":
        return lines
    settled = _newest_checkpoint(folder.checkpoints)
    return [line for line in lines if line["step"] < settled]


def _newest_checkpoint(folder: Path) -> int:
    """Steps that the newest whole checkpoint covers; 0 without one. One that is being written has a suffix."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name))), default=0)
