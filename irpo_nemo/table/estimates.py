"""Means and 95 % intervals over seeds, and of differences of two proportions measured on the same problems."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from irpo_nemo.metrics import Z_95, Interval

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


def estimate_difference(first: float, first_interval: Interval, second: float, second_interval: Interval) -> Estimate:
    """Difference of two independent proportions with their Wilson intervals (Newcombe 1998, method 10)."""
    low = math.hypot(first - first_interval[0], second_interval[1] - second)
    high = math.hypot(first_interval[1] - first, second - second_interval[0])
    return Estimate(mean=first - second, interval=(first - second - low, first - second + high))
