"""How good M_t is: accuracy, majority vote and pass@k of the graded completions of an evaluation set.

Accuracies come with Wilson's 95 % interval. Knows no tasks: answers are equal when the grader gave the same string.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from irpo_nemo.errors import ArtifactError
from irpo_nemo.records import GradedCandidate

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class MajorityVote:
    """Accuracy of the most frequent answer among k samples."""

    k: int
    accuracy: float
    accuracy_ci95: Interval


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model on one evaluation set."""

    num_problems: int
    accuracy: float
    """Of greedy decoding."""
    accuracy_ci95: Interval
    majority_vote: MajorityVote | None
    """None without samples."""
    pass_at_k: dict[int, float]
    """k = 1, 4, 16, ... up to the number of samples; empty without samples."""
    unparsable_rate: float
    """Share of greedy completions without a readable answer."""
    sample_accuracy: float | None
    """Share of correct samples; None without samples."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object of this evaluation."""
        value = asdict(self)
        for part in filter(None, (value, value["majority_vote"])):
            part["accuracy_ci95"] = list(part["accuracy_ci95"])
        value["pass_at_k"] = {str(k): rate for k, rate in self.pass_at_k.items()}
        return value


def evaluate(grades: Iterable[GradedCandidate]) -> Evaluation:
    """Measure one model: one greedy completion a problem, and the same number of samples for each, maybe none.

    Args:
        grades: With those of a problem next to each other.

    Raises:
        ArtifactError: There are none, or a problem lacks its greedy completion or some samples.
    """
    greedy: list[GradedCandidate] = []
    samples: list[list[GradedCandidate]] = []
    for problem_id, group in itertools.groupby(grades, key=lambda grade: grade.problem_id):
        members = list(group)
        first = [grade for grade in members if grade.kind == "greedy"]
        if len(first) != 1:
            raise ArtifactError(
                f"graded candidates: problem {problem_id} has {len(first)} greedy completions, but 1 is wanted. "
                "Delete the iteration's samples and graded folders and run `irpo run` again."
            )
        greedy += first
        samples.append([grade for grade in members if grade.kind == "sample"])
    num_samples = _samples_per_problem(samples)
    correct = sum(grade.verdict == "correct" for grade in greedy)
    return Evaluation(
        num_problems=len(greedy),
        accuracy=correct / len(greedy),
        accuracy_ci95=wilson_interval(correct, len(greedy)),
        majority_vote=_measure_majority(samples, num_samples) if num_samples else None,
        pass_at_k={k: _mean_pass_at_k(samples, k) for k in _powers_of_four(num_samples)},
        unparsable_rate=sum(grade.verdict == "unparsable" for grade in greedy) / len(greedy),
        sample_accuracy=_mean_pass_at_k(samples, 1) if num_samples else None,
    )


def _samples_per_problem(samples: Sequence[Sequence[GradedCandidate]]) -> int:
    counts = sorted({len(group) for group in samples})
    if len(counts) != 1:
        found = f"between {counts[0]} and {counts[-1]} samples a problem" if counts else "nothing"
        raise ArtifactError(
            f"graded candidates: found {found}, but the same number for each problem is wanted. "
            "Delete the iteration's samples and graded folders and run `irpo run` again."
        )
    return counts[0]


def _powers_of_four(limit: int) -> list[int]:
    return list(itertools.takewhile(lambda k: k <= limit, (4**power for power in itertools.count())))


def _measure_majority(samples: Sequence[Sequence[GradedCandidate]], num_samples: int) -> MajorityVote:
    correct = sum(majority_is_correct(group) for group in samples)
    return MajorityVote(
        k=num_samples, accuracy=correct / len(samples), accuracy_ci95=wilson_interval(correct, len(samples))
    )


def majority_is_correct(samples: Sequence[GradedCandidate]) -> bool:
    """Whether the most frequent answer is correct; of equally frequent ones, the first seen. Only read answers vote."""
    voters = [grade for grade in samples if grade.answer is not None and grade.verdict in ("correct", "wrong")]
    if not voters:
        return False
    ((winner, _),) = Counter(grade.answer for grade in voters).most_common(1)
    return next(grade.verdict for grade in voters if grade.answer == winner) == "correct"


def _mean_pass_at_k(samples: Sequence[Sequence[GradedCandidate]], k: int) -> float:
    rates = [pass_at_k(len(group), sum(grade.verdict == "correct" for grade in group), k) for group in samples]
    return sum(rates) / len(rates)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is correct (Chen et al. 2021, arXiv 2107.03374)."""
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def wilson_interval(successes: int, trials: int, *, z: float = Z_95) -> Interval:
    """Wilson's score interval of a proportion."""
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
