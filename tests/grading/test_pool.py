"""The pool with a grader that misbehaves on demand (`odd_grader`), in real processes."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from irpo_nemo.config import GradingConfig
from irpo_nemo.errors import DataError, MachineError
from irpo_nemo.grading.grade import Grade
from irpo_nemo.grading.pool import MAX_CHARACTERS, GradingPool
from irpo_nemo.grading.self_test import check_grader
from irpo_nemo.records import Problem
from tests.grading.problems import gold_problem

ODD = "tests.grading.odd_grader"
DEADLINE = 0.2
LIMITS = GradingConfig(num_workers=2, deadline_seconds=DEADLINE, memory_gib=0.5)


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(ODD, LIMITS) as started:
        yield started


def grade_texts(pool: GradingPool, *texts: str, gold: str = "a") -> list[Grade]:
    return list(pool.grade((gold_problem(gold), text) for text in texts))


def child_pids(pool: GradingPool) -> set[int]:
    return {int(grade.answer or 0) for grade in grade_texts(pool, *["pid"] * 50)}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: set[int], *, seconds: float = 5.0) -> set[int]:
    """Those still alive after so long."""
    end = time.monotonic() + seconds
    while (left := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def test_grades_come_in_the_order_of_the_answers(pool: GradingPool) -> None:
    texts = [str(number) for number in range(5000)]
    assert [grade.answer for grade in grade_texts(pool, *texts)] == texts


def test_any_text_reaches_the_grader_unchanged(pool: GradingPool) -> None:
    texts = ["", "\0", "\ud800", "a\nb\r\u2028c", "\U0001f600", '"\\', "x" * 400_000]
    assert [grade.answer for grade in grade_texts(pool, *texts)] == texts


@pytest.mark.parametrize(
    ("behaviour", "layer"),
    [
        ("sleep", "deadline"),
        ("burn", "deadline"),
        ("multiply", "deadline"),
        ("stop", "deadline"),
        ("die", "crash"),
        ("raise", "crash"),
        ("recurse", "crash"),
    ],
)
def test_a_hostile_answer_alone_becomes_an_error(pool: GradingPool, behaviour: str, layer: str) -> None:
    grade_texts(pool, *"a" * 1000)  # batches have grown
    started = time.monotonic()
    grades = grade_texts(pool, *"ab" * 20, behaviour, *"ab" * 20)
    assert time.monotonic() - started < 20 * DEADLINE
    assert grades.pop(40) == Grade(answer=None, verdict="error", layer=layer)
    assert [grade.verdict for grade in grades] == ["correct", "wrong"] * 40


def test_an_answer_that_eats_memory_becomes_an_error() -> None:
    with GradingPool(ODD, GradingConfig(num_workers=1, deadline_seconds=20, memory_gib=0.5)) as pool:
        grades = grade_texts(pool, "a", "eat", "a")
    assert [(grade.verdict, grade.layer) for grade in grades] == [
        ("correct", "whole"),
        ("error", "memory"),
        ("correct", "whole"),
    ]


def test_a_text_that_is_too_long_to_be_an_answer_is_not_graded(pool: GradingPool) -> None:
    grades = grade_texts(pool, "a", *["x" * (MAX_CHARACTERS + 1)] * 100, "a")
    assert {grade.layer for grade in grades[1:-1]} == {"length"}
    assert [grade.verdict for grade in (grades[0], grades[1], grades[-1])] == ["correct", "error", "correct"]


def test_one_death_is_forgiven(pool: GradingPool, tmp_path: Path) -> None:
    text = f"die_once {tmp_path}/marker"
    assert [grade.layer for grade in grade_texts(pool, "a", text, "a")] == ["whole"] * 3


def test_children_killed_from_outside_are_replaced(pool: GradingPool) -> None:
    for _ in range(3):
        for pid in child_pids(pool):
            os.kill(pid, signal.SIGKILL)
        assert [grade.verdict for grade in grade_texts(pool, *"a" * 200)] == ["correct"] * 200


def test_signals_of_the_terminal_leave_children_alone(pool: GradingPool) -> None:
    pids = child_pids(pool)
    for pid in pids:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, signum)
    assert child_pids(pool) <= pids


def test_a_malformed_gold_answer_is_raised_with_its_place_after_what_came_before(pool: GradingPool) -> None:
    bad = Problem(problem_id="train-7", question="", gold_answer="malformed")
    grades = pool.grade([(gold_problem("a"), "a")] * 10 + [(bad, "a")] + [(gold_problem("a"), "a")] * 10)
    assert [grade.verdict for grade in itertools.islice(grades, 10)] == ["correct"] * 10
    with pytest.raises(DataError, match=r"^train-7: gold answer 'malformed' is malformed\.$"):
        next(grades)
    assert grade_texts(pool, "a")[0].verdict == "correct"


def test_an_error_of_the_source_is_raised_after_what_came_before(pool: GradingPool) -> None:
    def read() -> Iterator[tuple[Problem, str]]:
        for _ in range(100):
            yield gold_problem("a"), "a"
        raise DataError("file:101: is cut off.")

    seen = []
    with pytest.raises(DataError, match="file:101"):
        for grade in pool.grade(read()):
            seen.append(grade.verdict)
    assert seen == ["correct"] * 100


def test_only_a_window_of_the_source_is_pulled(pool: GradingPool) -> None:
    pulled = itertools.count()
    grades = pool.grade((gold_problem("a"), "x" * 1000) for _ in zip(range(200_000), pulled, strict=False))
    for _ in range(10):
        next(grades)
    assert next(pulled) < 10_000


def test_an_abandoned_stream_leaves_the_pool_fit(pool: GradingPool) -> None:
    first = pool.grade((gold_problem("a"), text) for text in ["a", "sleep", "sleep"])
    next(first)
    first.close()  # type: ignore[attr-defined]
    assert [grade.verdict for grade in grade_texts(pool, "a", "b")] == ["correct", "wrong"]


def test_comparisons_have_the_deadline_too(pool: GradingPool) -> None:
    assert list(pool.compare([("a", "A"), ("a", "burn"), ("a", "b")])) == [True, False, False]


def test_a_closed_pool_leaves_no_process() -> None:
    with GradingPool(ODD, LIMITS) as pool:
        pids = {pool._server.pid, *child_pids(pool)}
        next(pool.grade([(gold_problem("a"), "a"), (gold_problem("a"), "sleep")]))
    assert wait_until_gone(pids) == set()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_parent_leaves_no_process(signum: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    pids = {int(word) for word in parent.stdout.readline().split()}
    assert len(pids) >= 2
    assert all(is_alive(pid) for pid in pids)
    parent.send_signal(signum)
    assert wait_until_gone(pids) == set()
    parent.wait(timeout=10)
    parent.stdout.close()


PARENT = f"""
from irpo_nemo.config import GradingConfig
from irpo_nemo.grading.pool import GradingPool
from tests.grading.problems import gold_problem
with GradingPool({ODD!r}, GradingConfig(num_workers=2, deadline_seconds=60)) as pool:
    pids = {{grade.answer for grade in pool.grade([(gold_problem("a"), "pid")] * 500)}}
    print(pool._server.pid, *pids, flush=True)
    list(pool.grade([(gold_problem("a"), "burn")] * 4))
"""


def test_a_lost_server_is_one_line() -> None:
    with GradingPool(ODD, LIMITS) as pool:
        pids = child_pids(pool)
        pool._server.kill()
        assert wait_until_gone(pids) == set(), "children die with the server"
        with pytest.raises(MachineError, match=rf"^the process that starts the {ODD} grader has gone \(exit code -9\)"):
            grade_texts(pool, "a")


def test_a_grader_that_cannot_be_loaded_is_reported() -> None:
    with pytest.raises(RuntimeError, match=r"No module named 'tests\.grading\.absent'"):
        GradingPool("tests.grading.absent", LIMITS)


@pytest.mark.parametrize("grader", ["numeric", "text", "choice"])
def test_graders_pass_their_golden_cases(grader: str) -> None:
    with GradingPool(grader, GradingConfig(num_workers=1)) as pool:
        assert check_grader(pool) >= 4


def test_a_failed_golden_case_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.grading import odd_grader

    monkeypatch.setattr(odd_grader, "golden_cases", lambda: [(gold_problem("50%"), "50", "correct")])
    with (
        GradingPool(ODD, LIMITS) as pool,
        pytest.raises(
            MachineError,
            match=rf"^self-test of the {ODD} grader failed: '50' with the gold answer '50%' came out wrong "
            r"\(layer whole\), wanted correct\. Nothing was graded; ",
        ),
    ):
        check_grader(pool)
