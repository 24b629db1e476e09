import random
from collections import Counter

import pytest

from irpo_nemo.metrics import wilson_interval
from irpo_nemo.table.estimates import (
    Estimate,
    estimate_accuracy,
    estimate_gain,
    estimate_mean,
    estimate_paired_difference,
)


def test_the_interval_of_a_mean_is_students() -> None:
    """1, 2, 3: mean 2, standard error 1 / sqrt 3, t(2) = 4.303."""
    estimate = estimate_mean([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.interval == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert not estimate.is_positive


def test_many_values_take_the_normal_quantile() -> None:
    values = [0.0, 1.0] * 20
    half = 1.959964 * (40 / 39 * 0.25 / 40) ** 0.5
    assert estimate_mean(values).interval == pytest.approx((0.5 - half, 0.5 + half))


def test_the_difference_on_the_same_problems_is_newcombes() -> None:
    """The worked example of Altman et al., Statistics with Confidence (2000), table 6.2: 0.12 with 0.01 to 0.23."""
    estimate = estimate_paired_difference(both=14, first=5, second=0, neither=22)
    assert estimate.mean == pytest.approx(5 / 41)
    assert estimate.interval == pytest.approx((0.011, 0.226), abs=5e-4)
    swapped = estimate_paired_difference(both=14, first=0, second=5, neither=22)
    assert swapped.interval == pytest.approx(tuple(-bound for bound in reversed(estimate.interval)))


def test_models_that_solve_the_same_problems_differ_by_little() -> None:
    """Of 400: 12 more, and none fewer, is a clear gain; 112 more and 100 fewer is none, though as large."""
    assert estimate_paired_difference(both=374, first=12, second=0, neither=14).is_positive
    assert not estimate_paired_difference(both=174, first=112, second=100, neither=14).is_positive


@pytest.mark.parametrize("counts", [(400, 0, 0, 0), (0, 0, 0, 400), (0, 400, 0, 0)])
def test_a_difference_without_spread_has_an_interval(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    estimate = estimate_paired_difference(both=both, first=first, second=second, neither=neither)
    assert estimate.interval[0] < estimate.mean
    assert estimate.interval[1] - estimate.interval[0] < 0.03


def test_the_interval_holds_the_truth_95_times_in_100() -> None:
    """2,000 draws of 200 problems, of which the models solve 0.8 and 0.7, with 0.66 in common."""
    generator = random.Random(0)
    chances = {"both": 0.66, "first": 0.14, "second": 0.04, "neither": 0.16}
    hits = 0
    for _ in range(2000):
        draws = Counter(generator.choices(list(chances), list(chances.values()), k=200))
        low, high = estimate_paired_difference(**{name: draws[name] for name in chances}).interval
        hits += low <= 0.1 <= high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_an_interval_around_0_has_no_sign() -> None:
    estimate = Estimate(mean=0.1, interval=(-0.1, 0.3))
    assert not estimate.is_positive
    assert not estimate.is_negative
    assert Estimate(mean=-0.1, interval=(-0.3, -0.01)).is_negative


def test_scores_of_0_and_1_are_proportions() -> None:
    scores = [1.0] * 30 + [0.0] * 10
    assert estimate_accuracy(scores) == Estimate(mean=0.75, interval=wilson_interval(30, 40))
    others = [1.0] * 25 + [0.0] * 10 + [1.0] * 5
    assert estimate_gain(scores, others) == estimate_paired_difference(both=25, first=5, second=5, neither=5)


def test_scores_between_are_means_over_problems() -> None:
    scores, others = [1.0, 0.5, 0.75], [0.5, 0.25, 0.5]
    assert estimate_accuracy(scores) == estimate_mean(scores)
    assert estimate_gain(scores, others) == estimate_mean([0.5, 0.25, 0.25])
    assert estimate_gain([1.0, 1.0, 0.0], others) == estimate_mean([0.5, 0.75, -0.5])


def test_of_one_problem_nothing_is_known() -> None:
    assert estimate_accuracy([0.5]) == Estimate(mean=0.5, interval=(0.0, 1.0))
    assert estimate_gain([0.5], [1.0]) == Estimate(mean=-0.5, interval=(-1.0, 1.0))
