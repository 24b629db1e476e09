import pytest

from irpo_nemo.metrics import wilson_interval
from irpo_nemo.table.estimates import Estimate, estimate_difference, estimate_mean


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


def test_the_difference_of_proportions_is_newcombes() -> None:
    """His example (a): 56 of 70 against 48 of 80 gives 0.2 with 0.0524 to 0.3339 (method 10, 1998)."""
    first, second = wilson_interval(56, 70), wilson_interval(48, 80)
    estimate = estimate_difference(56 / 70, first, 48 / 80, second)
    assert estimate.mean == pytest.approx(0.2)
    assert estimate.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert estimate.is_positive


def test_an_interval_around_0_has_no_sign() -> None:
    estimate = Estimate(mean=0.1, interval=(-0.1, 0.3))
    assert not estimate.is_positive
    assert not estimate.is_negative
    assert Estimate(mean=-0.1, interval=(-0.3, -0.01)).is_negative
