"""The numbers of a table, read from the folders of its runs: accuracies by row and seed, curves, and what was done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpo_nemo.artifacts import read_json, read_manifest
from irpo_nemo.metrics import Interval
from irpo_nemo.reporting.results import read_metrics
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.table.layout import Row


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One accuracy of one seed."""

    accuracy: float
    interval: Interval
    """Wilson's 95 % interval over the problems."""
    num_votes: int | None
    """Samples that vote, of a majority vote."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The log-prob of one side of the pairs over a training run, for one seed.

    Every step sees other pairs, whose log-probs differ far more than training moves them. So a point is the mean under
    the reference over the whole run, plus what the step's pairs have moved from their own reference.
    """

    changes: Sequence[float]
    """log p - log p_ref of each step, averaged over its pairs."""
    level: float
    """Mean of log p_ref."""

    @property
    def last_changes(self) -> Sequence[float]:
        """Those of the last tenth of the steps."""
        return self.changes[-max(1, len(self.changes) // 10) :]


@dataclass(frozen=True, kw_only=True)
class DoneStep:
    """A finished step of a run."""

    run: str
    seed: int
    step: str
    origin: str | None
    """The run that made it, if this one took it over."""
    seconds: float
    """What it took, here or there."""


def measure(run: RunFolder, row: Row) -> Measurement | None:
    """The row's accuracy in a run; None when the run has not come so far."""
    folder = run.iteration(row.iteration)
    if read_manifest(folder.manifest("grade")) is None:
        return None
    evaluation: dict[str, Any] = read_json(folder.evaluation)
    found = evaluation["majority_vote"] if row.decoding == "majority" else evaluation
    if found is None:
        return None
    low, high = found["accuracy_ci95"]
    return Measurement(accuracy=found["accuracy"], interval=(low, high), num_votes=found.get("k"))


def read_curve(run: RunFolder, side: str) -> Curve | None:
    """The curve of iteration 0's training; None when that is not done."""
    from omegaconf import OmegaConf

    folder = run.iteration(0)
    if read_manifest(folder.manifest("train")) is None:
        return None
    beta = float(OmegaConf.load(run.config).loss.beta)
    lines = read_metrics(folder.train.metrics)
    changes = [line[f"reward/{side}"] / beta for line in lines]
    levels = [line[f"logprob/{side}"] - change for line, change in zip(lines, changes, strict=True)]
    return Curve(changes=changes, level=sum(levels) / len(levels))


def list_done_steps(run: RunFolder, *, name: str, seed: int) -> Iterator[DoneStep]:
    """The finished steps of a run, in the order in which they were finished; the report aside."""
    for folder in [run.model_zero.root, *sorted(run.root.glob("iteration_*"))]:
        for path in sorted(folder.glob("*.manifest.json"), key=lambda path: path.stat().st_mtime_ns):
            manifest = read_manifest(path)
            assert manifest is not None
            yield DoneStep(
                run=name,
                seed=seed,
                step=manifest.stage if manifest.iteration is None else f"{manifest.stage} {manifest.iteration}",
                origin=Path(manifest.taken_from).name if manifest.taken_from else None,
                seconds=manifest.seconds["total"],
            )
