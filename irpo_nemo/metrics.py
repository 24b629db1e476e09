"""How good M_t is: accuracy, majority vote and pass@k of the graded completions of an evaluation set.

Accuracies come with Wilson's 95 % interval. Knows no tasks; which answers mean the same, the grader has said
(`GradedCandidate.answer_class`).
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from irpo_nemo.errors import ArtifactError
from irpo_nemo.records import GradedCandidate, Problem

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
class GroupAccuracy:
    """Accuracy of greedy decoding on some of the problems."""

    num_problems: int
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
    error_rate: float
    """Share of greedy completions that the grader failed on; they count as not correct."""
    sample_accuracy: float | None
    """Share of correct samples; None without samples."""
    by_level: dict[str, GroupAccuracy] | None
    """None when the task's problems have no levels."""
    by_subject: dict[str, GroupAccuracy] | None
    """None when the task's problems have no subjects."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object of this evaluation."""
        value = asdict(self)
        groups = [*(value["by_level"] or {}).values(), *(value["by_subject"] or {}).values()]
        for part in filter(None, (value, value["majority_vote"], *groups)):
            part["accuracy_ci95"] = list(part["accuracy_ci95"])
        value["pass_at_k"] = {str(k): rate for k, rate in self.pass_at_k.items()}
        return value


def evaluate(grades: Iterable[GradedCandidate], problems: Iterable[Problem] = ()) -> Evaluation:
    """Measure one model: one greedy completion a problem, and the same number of samples for each, maybe none.

    Args:
        grades: With those of a problem next to each other.
        problems: Say which level and subject a problem has.

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
    by_id = {problem.problem_id: problem for problem in problems}
    correct = sum(grade.verdict == "correct" for grade in greedy)
    return Evaluation(
        num_problems=len(greedy),
        accuracy=correct / len(greedy),
        accuracy_ci95=wilson_interval(correct, len(greedy)),
        majority_vote=_measure_majority(samples, num_samples) if num_samples else None,
        pass_at_k={k: _mean_pass_at_k(samples, k) for k in _powers_of_four(num_samples)},
        unparsable_rate=sum(grade.verdict == "unparsable" for grade in greedy) / len(greedy),
        error_rate=sum(grade.verdict == "error" for grade in greedy) / len(greedy),
        sample_accuracy=_mean_pass_at_k(samples, 1) if num_samples else None,
        by_level=_measure_groups(greedy, {name: problem.level for name, problem in by_id.items()}),
        by_subject=_measure_groups(greedy, {name: problem.subject for name, problem in by_id.items()}),
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


def _measure_groups(
    greedy: Iterable[GradedCandidate], group_of: Mapping[str, str | None]
) -> dict[str, GroupAccuracy] | None:
    """Accuracy by group, of the problems that are in one."""
    verdicts: dict[str, list[bool]] = {}
    for grade in greedy:
        if (group := group_of.get(grade.problem_id)) is not None:
            verdicts.setdefault(group, []).append(grade.verdict == "correct")
    if not verdicts:
        return None
    return {
        group: GroupAccuracy(
            num_problems=len(members),
            accuracy=sum(members) / len(members),
            accuracy_ci95=wilson_interval(sum(members), len(members)),
        )
        for group, members in sorted(verdicts.items())
    }


def _powers_of_four(limit: int) -> list[int]:
    return list(itertools.takewhile(lambda k: k <= limit, (4**power for power in itertools.count())))


def _measure_majority(samples: Sequence[Sequence[GradedCandidate]], num_samples: int) -> MajorityVote:
    correct = sum(majority_is_correct(group) for group in samples)
    return MajorityVote(
        k=num_samples, accuracy=correct / len(samples), accuracy_ci95=wilson_interval(correct, len(samples))
    )


def majority_is_correct(samples: Sequence[GradedCandidate]) -> bool:
    """Whether the most frequent answer is correct.

    Answers that mean the same are one. Of equally frequent ones the one seen first wins, in the order of the samples'
    indices. Samples without a readable answer, and those that the grader failed on, do not vote.
    """
    votes = Counter(grade.answer_class for grade in samples if grade.answer_class is not None)
    if not votes:
        return False
    most = max(votes.values())
    winner = min(answer_class for answer_class, count in votes.items() if count == most)
    return any(grade.verdict == "correct" for grade in samples if grade.answer_class == winner)


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
