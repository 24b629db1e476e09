"""The numbers of a table, read from the folders of its runs: accuracies by row and seed, curves, and what was done."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from irpo_nemo.artifacts import read_manifest, read_parts
from irpo_nemo.metrics import Interval, majority_is_correct
from irpo_nemo.pipeline import EVALUATION_SPLIT
from irpo_nemo.records import GradedCandidate
from irpo_nemo.reporting.results import read_metrics
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.table.estimates import Estimate, estimate_accuracy
from irpo_nemo.table.layout import Row


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One accuracy of one seed."""

    scores: Mapping[str, float]
    """By problem: 1 when it is solved, 0 when not; of pass@1 the share of its samples that solve it."""
    num_votes: int | None
    """Samples that vote, of a majority vote."""

    @property
    def accuracy(self) -> float:
        """The mean over problems."""
        return self._estimate.mean

    @property
    def interval(self) -> Interval:
        """95 %, over the problems."""
        return self._estimate.interval

    @functools.cached_property
    def _estimate(self) -> Estimate:
        return estimate_accuracy(list(self.scores.values()))


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
    grades = read_parts(folder.graded(EVALUATION_SPLIT), GradedCandidate)
    if row.decoding == "greedy":
        scores = {grade.problem_id: float(grade.verdict == "correct") for grade in grades if grade.kind == "greedy"}
        return Measurement(scores=scores, num_votes=None)
    samples: dict[str, list[GradedCandidate]] = defaultdict(list)
    for grade in grades:
        if grade.kind == "sample":
            samples[grade.problem_id].append(grade)
    if not samples:
        return None
    if row.decoding == "pass@1":
        return Measurement(scores={problem_id: _share(group) for problem_id, group in samples.items()}, num_votes=None)
    votes = {problem_id: float(majority_is_correct(group)) for problem_id, group in samples.items()}
    return Measurement(scores=votes, num_votes=max(map(len, samples.values())))


def _share(samples: Sequence[GradedCandidate]) -> float:
    return sum(grade.verdict == "correct" for grade in samples) / len(samples)


def read_curve(run: RunFolder, side: str) -> Curve | None:
    """The curve of iteration 0's training, or else of the pairs that fine-tuning watched; None when neither is done."""
    from omegaconf import OmegaConf

    folder = run.iteration(0)
    if read_manifest(folder.manifest("train")) is None:
        return _read_watched_curve(run, side)
    beta = float(OmegaConf.load(run.config).loss.beta)
    lines = read_metrics(folder.train.metrics)
    changes = [line[f"reward/{side}"] / beta for line in lines]
    levels = [line[f"logprob/{side}"] - change for line, change in zip(lines, changes, strict=True)]
    return Curve(changes=changes, level=sum(levels) / len(levels))


def _read_watched_curve(run: RunFolder, side: str) -> Curve | None:
    """Always of the same pairs: what has changed since the first step."""
    if read_manifest(run.model_zero.manifest("sft")) is None:
        return None
    name = f"watched/logprob/{side}"
    values = [line[name] for line in read_metrics(run.model_zero.train.metrics) if name in line]
    return Curve(changes=[value - values[0] for value in values], level=values[0]) if values else None


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
