"""Hostile answers cost their deadline and nothing else. None of them is right, so none may be called correct."""

import resource
import time
from collections.abc import Iterator

import pytest

from irpo_nemo.config import GradingConfig
from irpo_nemo.grading.pool import GradingPool
from tests.grading.hostile import GOLDS, NUM_INPUTS, hostile_completions
from tests.grading.problems import gold_problem
from tests.grading.test_pool import wait_until_gone

COMPLETIONS = hostile_completions()
LIMITS = GradingConfig(num_workers=2, deadline_seconds=0.5, memory_gib=1.0)
WALL_SECONDS = 60.0
"""Far more than it takes on a machine that has other things to do as well."""
PARENT_MIB = 400


def test_there_are_two_hundred_and_they_differ() -> None:
    assert len(set(COMPLETIONS)) == len(COMPLETIONS) == NUM_INPUTS == 200


@pytest.mark.parametrize("grader", GOLDS)
def test_hostile_answers_are_never_correct_and_cost_little(grader: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem = gold_problem(GOLDS[grader])
    started = time.monotonic()
    with GradingPool(grader, LIMITS) as pool:
        pids = {pool._server.pid, *(child.pid for child in pool._children)}
        grades = list(pool.grade((problem, text) for text in COMPLETIONS))
        pids |= {child.pid for child in pool._children}
    assert time.monotonic() - started < WALL_SECONDS
    assert wait_until_gone(pids) == set()
    assert len(grades) == NUM_INPUTS
    fooled = [text[:80] for text, grade in zip(COMPLETIONS, grades, strict=True) if grade.verdict == "correct"]
    assert fooled == []
    broken = [text[:80] for text, grade in zip(COMPLETIONS, grades, strict=True) if grade.layer == "crash"]
    assert broken == [], "the grader raised an exception"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < PARENT_MIB * 1024


@pytest.fixture(scope="module")
def latex_pool() -> Iterator[GradingPool]:
    with GradingPool("latex", LIMITS) as pool:
        yield pool


def test_hostile_answers_can_be_compared(latex_pool: GradingPool) -> None:
    """With each other and with themselves, as in a majority vote."""
    texts = [text[:2000] for text in COMPLETIONS[::4]]
    assert len(list(latex_pool.compare([(left, right) for left in texts[::10] for right in texts]))) == 250


def test_the_right_answer_is_still_found_among_them(latex_pool: GradingPool) -> None:
    texts = [text for hostile in COMPLETIONS[:80] for text in ("Final answer: 17", hostile)]
    verdicts = [grade.verdict for grade in latex_pool.grade((gold_problem("17"), text) for text in texts)]
    assert verdicts[::2] == ["correct"] * 80


def test_circled_digits_break_no_grader(latex_pool: GradingPool) -> None:
    (grade,) = latex_pool.grade([(gold_problem("17"), "Final answer: \u2460\u2467")])
    assert grade.layer != "crash"
