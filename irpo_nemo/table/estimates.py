"""Means and 95 % intervals over seeds, and of differences of two proportions measured on the same problems."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from irpo_nemo.metrics import Z_95, Interval, wilson_interval

_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    interval: Interval

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.interval[0] > 0

    @property
    def is_negative(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.interval[1] < 0


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Student's interval of the mean of two values at least, normal where it comes to the same."""
    mean = statistics.fmean(values)
    quantile = _T_95[len(values) - 2] if len(values) - 2 < len(_T_95) else Z_95
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=mean, interval=(mean - half, mean + half))


def estimate_accuracy(scores: Sequence[float]) -> Estimate:
    """The mean score of problems: Wilson's interval where each is 0 or 1, Student's where some lie between."""
    if _are_binary(scores):
        solved = round(sum(scores))
        return Estimate(mean=solved / len(scores), interval=wilson_interval(solved, len(scores)))
    return _estimate_over_problems(scores, worst=(0.0, 1.0))


def estimate_gain(better: Sequence[float], worse: Sequence[float]) -> Estimate:
    """The mean difference of two scores of the same problems, in the same order."""
    if not _are_binary(better) or not _are_binary(worse):
        gains = [one - other for one, other in zip(better, worse, strict=True)]
        return _estimate_over_problems(gains, worst=(-1.0, 1.0))
    counts = Counter(zip(better, worse, strict=True))
    return estimate_paired_difference(both=counts[1, 1], first=counts[1, 0], second=counts[0, 1], neither=counts[0, 0])


def _estimate_over_problems(values: Sequence[float], *, worst: Interval) -> Estimate:
    """Of a single problem nothing is known but the `worst` interval."""
    return estimate_mean(values) if len(values) > 1 else Estimate(mean=values[0], interval=worst)


def _are_binary(scores: Sequence[float]) -> bool:
    return set(scores) <= {0.0, 1.0}


def estimate_paired_difference(*, both: int, first: int, second: int, neither: int) -> Estimate:
    """How much more often the first of two models is correct than the second, on the same problems.

    Newcombe's interval for paired data: Wilson's of each proportion, and their correlation (Stat. Med. 17, 2635 to
    2650, 1998; method 10).

    Args:
        both: Problems that both solve.
        first: Problems that the first alone solves.
        second: Problems that the second alone solves.
        neither: Problems that no one solves.
    """
    total = both + first + second + neither
    rates = ((both + first) / total, (both + second) / total)
    intervals = (wilson_interval(both + first, total), wilson_interval(both + second, total))
    below = [rate - low for rate, (low, _) in zip(rates, intervals, strict=True)]
    above = [high - rate for rate, (_, high) in zip(rates, intervals, strict=True)]
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    corrected = min(cross, max(0.0, cross - total / 2))
    correlation = corrected / math.sqrt(margins) if margins else 0.0
    low = _combine(below[0], above[1], correlation)
    high = _combine(above[0], below[1], correlation)
    difference = rates[0] - rates[1]
    return Estimate(mean=difference, interval=(difference - low, difference + high))


def _combine(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))
