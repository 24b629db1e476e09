"""Goodput: Young's and Daly's closed forms, and a simulation of the same failures."""

import math
import random

import pytest

from irpo_nemo.planning.goodput import Failures, best_interval, expected_goodput, simulate_chain, simulate_seconds

RARE = Failures(mean=1e7, checkpoint=60, restart=600)
OFTEN = Failures(mean=3600, checkpoint=60, restart=600)


def test_the_best_interval_is_youngs_where_failures_are_rare() -> None:
    assert best_interval(RARE) == pytest.approx(math.sqrt(2 * 60 * 1e7), rel=0.01)


def test_the_best_interval_is_dalys_where_they_are_not() -> None:
    """Daly 2006, equation 37: sqrt(2 c M) (1 + sqrt(c / 2M) / 3 + c / 18M) - c."""
    c, mean = OFTEN.checkpoint, OFTEN.mean
    daly = math.sqrt(2 * c * mean) * (1 + math.sqrt(c / (2 * mean)) / 3 + c / (18 * mean)) - c
    assert best_interval(OFTEN) == pytest.approx(daly, rel=1e-3)


@pytest.mark.parametrize("failures", [RARE, OFTEN], ids=["rare", "often"])
def test_no_other_interval_is_better(failures: Failures) -> None:
    best = best_interval(failures)
    goodput = expected_goodput(failures, interval=best)
    assert goodput > max(expected_goodput(failures, interval=best * factor) for factor in (0.5, 0.9, 1.1, 2))


def test_without_failures_only_checkpoints_are_lost() -> None:
    never = Failures(mean=1e15, checkpoint=10, restart=600)
    assert expected_goodput(never, interval=90) == pytest.approx(0.9)
    assert simulate_seconds(900, never, interval=90, rng=random.Random(0)) == 1000


@pytest.mark.parametrize("interval", [300.0, 900.0, 2700.0])
def test_the_simulation_agrees_with_the_expectation(interval: float) -> None:
    work = 100 * interval
    mean, _ = simulate_chain([work], OFTEN, interval=interval, seed=1, runs=100)
    assert work / mean == pytest.approx(expected_goodput(OFTEN, interval=interval), rel=0.05)


def test_the_simulation_is_drawn_from_its_seed() -> None:
    first, second, other = (simulate_chain([1e5, 1e5], OFTEN, interval=600, seed=seed, runs=20) for seed in (1, 1, 2))
    assert first == second != other
    assert first[1] >= first[0]


def test_failures_so_often_that_nothing_ends_are_no_progress() -> None:
    assert expected_goodput(Failures(mean=1, checkpoint=60, restart=600), interval=900) == 0
