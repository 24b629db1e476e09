"""Grading in child processes: no answer can hang, crash or fill the run; it costs its deadline and becomes an "error".

    pool ──fork, end──► fork server ──fork──► children, as many as processor cores
      └──── batches of jobs ─►, ◄─ a result for each ────┘

Jobs and results stream: results come in the order of the jobs, and only a bounded window of jobs is held. When a child
dies, the job it was at is judged and the rest of its batch goes to another child:

    deadline    it used up its processor time, or gave no answer for `_PATIENCE` times as long
    memory      it ran out of memory
    crash       two children died at it (one death may be the machine's: Linux kills where memory is short)

A job whose grader raised an exception is a crash as well, and one of more than `MAX_CHARACTERS` is not sent at all
("length"). A `DataError` of a malformed gold answer is raised here. `irpo_nemo.grading.fork_server` is the other side.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from irpo_nemo import errors
from irpo_nemo.config import GradingConfig
from irpo_nemo.errors import IRPOError, MachineError
from irpo_nemo.grading.fork_server import (
    END,
    FORK,
    MEMORY_EXIT,
    REPLY,
    REQUEST,
    receive_exactly,
    receive_message,
    send_message,
)
from irpo_nemo.grading.grade import Grade
from irpo_nemo.records import Problem

logger = logging.getLogger(__name__)

Job = list[Any]
Outcome = Any
"""A list for a grade, a boolean for a comparison, the layer of an error, or an exception to raise."""

MAX_CHARACTERS = 500_000
"""Of a completion. A hundred thousand tokens of reasoning have fewer; only a model that lost itself writes more."""

_WINDOW_JOBS = 4096
"""Jobs held at once: enough for the other children to go on while one sits out its deadline."""
_WINDOW_CHARACTERS = 32_000_000
_MAX_BATCH = 128
_BATCH_SECONDS = 0.05
"""Batches grow and shrink towards this long."""
_TICK_SECONDS = 0.1
_PATIENCE = 3.0
_START_SECONDS = 120.0
_MAX_DEATHS = 2

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from irpo_nemo.grading.fork_server import serve; serve(int(sys.argv[2]))"
)


@dataclass(kw_only=True)
class _Slot:
    """A job of the window, and what became of it."""

    job: Job
    place: str
    """What the user calls it, for errors."""
    size: int
    """Characters."""
    outcome: Outcome = None
    is_done: bool = False
    deaths: int = 0

    def settle(self, outcome: Outcome) -> None:
        self.outcome, self.is_done = outcome, True


@dataclass(kw_only=True)
class _Child:
    """A child and the jobs that it has not answered yet."""

    pid: int
    connection: socket.socket
    pending: deque[_Slot] = field(default_factory=deque)
    unread: bytes = b""
    """The beginning of a result."""
    waited_seconds: float = 0.0
    """Since its last sign of life, of the time that this process spent waiting; so it is zero for a stopped run."""
    batch_size: int = 1
    batch_started: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A job before it enters the window."""

    job: Job
    place: str
    size: int


class GradingPool:
    """Children that grade with one grader. Use it in a `with` statement; they start with it and end with it."""

    def __init__(self, grader: str, config: GradingConfig) -> None:
        """Start the fork server and wait until it is ready.

        Args:
            grader: A key of `irpo_nemo.grading.GRADERS`, or the dotted path of a module that is a grader.
            config: `audit` loads the grader's auditor as well.

        Raises:
            MachineError: The grader cannot be loaded here.
        """
        self.grader = grader
        self._limits = {
            "deadline_seconds": config.deadline_seconds,
            "memory_bytes": int(config.memory_gib * 2**30),
        }
        self._patience_seconds = _PATIENCE * config.deadline_seconds
        self.num_children = config.num_workers or count_cores()
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()
        self._has_reported_bug = False
        self._control, self._server = _start_server()
        try:
            self._greet_server(audit=config.audit)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes. Closing twice is no mistake."""
        for child in self._children:
            child.connection.close()
        self._children.clear()
        self._selector.close()
        self._control.close()  # which ends the server, and with it the children
        try:
            self._server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def grade(self, items: Iterable[tuple[Problem, str]]) -> Iterator[Grade]:
        """Yield the grade of each completion, in order.

        Raises:
            DataError: A gold answer is malformed; the message begins with the problem's id.
        """
        return (_as_grade(outcome) for outcome in self._run(_grading("grade", *item) for item in items))

    def grade_twice(self, items: Iterable[tuple[Problem, str]]) -> Iterator[tuple[Grade, Grade]]:
        """Yield the grader's and the auditor's grade of each completion, in order.

        Raises:
            DataError: A gold answer is malformed; the message begins with the problem's id.
        """
        outcomes = self._run(_grading(kind, *item) for item in items for kind in ("grade", "audit"))
        grades = map(_as_grade, outcomes)
        return zip(grades, grades, strict=True)

    def compare(self, pairs: Iterable[tuple[str, str]]) -> Iterator[bool]:
        """Yield for each pair of answers whether they mean the same; those that cannot be compared in time do not."""
        requests = (
            _Request(job=["compare", left, right], place="", size=len(left) + len(right)) for left, right in pairs
        )
        return (outcome is True for outcome in self._run(requests))

    def examine_packages(self) -> None:
        """Let the grader look, in a child, whether the packages that it stands on do what they should.

        Raises:
            MachineError: They do not.
        """
        (outcome,) = self._run([_Request(job=["examine"], place="", size=0)])
        if outcome is not True:
            raise MachineError(f"the {self.grader} grader's packages could not be examined: {outcome}.")

    def _run(self, requests: Iterable[_Request]) -> Iterator[Outcome]:
        """Yield the outcome of each job, in order; raise those that are exceptions at their turn."""
        window = _Window(requests)
        try:
            while True:
                self._hand_out(window)
                while (slot := window.take_done()) is not None:
                    if isinstance(slot.outcome, Exception):
                        raise slot.outcome
                    yield slot.outcome
                if window.is_finished:
                    return
                if any(child.pending for child in self._children):
                    self._wait_for_children(window)
        except (Exception, GeneratorExit):
            for child in [child for child in self._children if child.pending]:
                self._end_child(child)  # its results belong to nobody any more
            raise

    def _hand_out(self, window: "_Window") -> None:
        """Give every child without work a batch, and start children while there is work for them."""
        for child in self._children:
            if not child.pending:
                self._send_batch(child, window)
        while len(self._children) < self.num_children and window.has_work():
            self._send_batch(self._start_child(), window)

    def _send_batch(self, child: _Child, window: "_Window") -> None:
        child.pending.extend(window.take_batch(child.batch_size))
        if not child.pending:
            return
        child.waited_seconds, child.batch_started = 0.0, time.monotonic()
        try:
            send_message(child.connection, [slot.job for slot in child.pending])
        except OSError:  # it is dead or stuck, which shows when it is read from
            with contextlib.suppress(OSError):
                child.connection.shutdown(socket.SHUT_RDWR)

    def _wait_for_children(self, window: "_Window") -> None:
        """Read what the children say; bury those that are dead or have been silent for too long."""
        started = time.monotonic()
        ready = {key.data.pid for key, _ in self._selector.select(_TICK_SECONDS)}
        waited = min(time.monotonic() - started, 2 * _TICK_SECONDS)
        for child in list(self._children):
            if child.pid in ready:
                child.waited_seconds = 0.0
                self._read_results(child, window)
            elif child.pending:
                child.waited_seconds += waited
                if child.waited_seconds > self._patience_seconds:
                    self._bury(child, window, is_stuck=True)

    def _read_results(self, child: _Child, window: "_Window") -> None:
        try:
            data = child.connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._bury(child, window, is_stuck=False)
            return
        *results, child.unread = (child.unread + data).split(b"\n")
        for result in results:
            slot = child.pending.popleft()
            slot.settle(self._read_outcome(slot, json.loads(result)))
        if not child.pending:
            _adapt_batch_size(child)

    def _read_outcome(self, slot: _Slot, result: Any) -> Outcome:
        if not isinstance(result, dict):
            return result
        if result["kind"] != "bug":
            place = f"{slot.place}: " if slot.place else ""
            return _make_error(result["kind"], f"{place}{result['message']}")
        if not self._has_reported_bug:
            self._has_reported_bug = True
            who = "auditor" if slot.job[0] == "audit" else "grader"
            logger.warning("%s: the %s %s failed on it; this becomes an error", slot.place, self.grader, who)
            logger.warning("%s", result["message"])
        return "crash"

    def _bury(self, child: _Child, window: "_Window", *, is_stuck: bool) -> None:
        """Judge the job that a dead or stuck child was at; hand the rest of its batch back."""
        status = self._end_child(child)
        if not child.pending:
            return
        slot = child.pending[0]
        slot.deaths += 1
        if is_stuck or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF):
            slot.settle("deadline")
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status) == MEMORY_EXIT:
            slot.settle("memory")
        elif slot.deaths >= _MAX_DEATHS:
            slot.settle("crash")
        window.take_back([slot for slot in child.pending if not slot.is_done])

    def _greet_server(self, *, audit: bool) -> None:
        self._control.settimeout(_START_SECONDS)
        try:
            send_message(self._control, {"grader": self.grader, "audit": audit, "limits": self._limits})
            failure = receive_message(self._control)
        except TimeoutError:
            raise MachineError(
                f"the {self.grader} grader was not ready within {_START_SECONDS:g} s. "
                "Is this machine overloaded, or its file system slow? Run the same command again."
            ) from None
        except (EOFError, OSError):
            raise self._lost_server() from None
        if failure is not None:
            raise _make_error(failure["kind"], failure["message"])

    def _start_child(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._ask_server(FORK, 0, [theirs.fileno()])
        if pid < 0:
            ours.close()
            raise MachineError(
                f"no process to grade in could be started: {os.strerror(-pid)}. "
                "Free memory, or set grading.num_workers lower."
            )
        ours.settimeout(self._patience_seconds)
        child = _Child(pid=pid, connection=ours)
        self._children.append(child)
        self._selector.register(ours, selectors.EVENT_READ, child)
        return child

    def _end_child(self, child: _Child) -> int:
        """End a child; its wait status."""
        self._selector.unregister(child.connection)
        self._children.remove(child)
        child.connection.close()
        return self._ask_server(END, child.pid, [])

    def _ask_server(self, kind: bytes, pid: int, descriptors: Sequence[int]) -> int:
        try:
            socket.send_fds(self._control, [REQUEST.pack(kind, pid)], descriptors)
            (reply,) = REPLY.unpack(receive_exactly(self._control, REPLY.size))
        except (EOFError, OSError):
            raise self._lost_server() from None
        return int(reply)

    def _lost_server(self) -> MachineError:
        return MachineError(
            f"the process that starts the {self.grader} grader has gone (exit code {self._server.poll()}), "
            "most often because memory ran out. Free memory and run the same command again."
        )


class _Window:
    """The jobs between the first that is not done and the last that was handed out."""

    def __init__(self, requests: Iterable[_Request]) -> None:
        self._requests = iter(requests)
        self._is_exhausted = False
        self._slots: deque[_Slot] = deque()
        self._waiting: deque[_Slot] = deque()
        """Those of `_slots` that no child has, in order."""
        self._characters = 0

    @property
    def is_finished(self) -> bool:
        return self._is_exhausted and not self._slots

    def has_work(self) -> bool:
        """Whether there is a job that no child has; pulls one when there is room for it."""
        while not self._waiting and not self._is_exhausted and self._has_room():
            self._pull()
        return bool(self._waiting)

    def take_batch(self, size: int) -> list[_Slot]:
        """Up to `size` jobs that no child has."""
        batch: list[_Slot] = []
        while len(batch) < size and self.has_work():
            batch.append(self._waiting.popleft())
        return batch

    def take_back(self, slots: Sequence[_Slot]) -> None:
        """Let others do what a dead child leaves."""
        self._waiting.extendleft(reversed(slots))

    def take_done(self) -> _Slot | None:
        """The first job, when it is done; it leaves the window."""
        if not self._slots or not self._slots[0].is_done:
            return None
        slot = self._slots.popleft()
        self._characters -= slot.size
        return slot

    def _has_room(self) -> bool:
        return not self._slots or (len(self._slots) < _WINDOW_JOBS and self._characters < _WINDOW_CHARACTERS)

    def _pull(self) -> None:
        """Let the next request in. An exception of their source waits for its turn behind what came before."""
        try:
            request = next(self._requests)
        except StopIteration:
            self._is_exhausted = True
            return
        except Exception as error:  # noqa: BLE001 - raised again at its turn
            self._is_exhausted = True
            self._slots.append(_Slot(job=[], place="", size=0, outcome=error, is_done=True))
            return
        slot = _Slot(job=request.job, place=request.place, size=request.size)
        self._slots.append(slot)
        self._characters += slot.size
        if slot.size > MAX_CHARACTERS:
            slot.settle("length")
        else:
            self._waiting.append(slot)


def count_cores() -> int:
    """Processor cores that this process may use; Slurm gives a job some of a node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_server() -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), str(theirs.fileno())]
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=os.environ | {"PYTHONHASHSEED": "0"},  # so that sympy orders terms in the same way every time
        )
    return ours, server


def _grading(kind: str, problem: Problem, text: str) -> _Request:
    job = [kind, problem.gold_answer, problem.choice_labels, problem.choices, text]
    return _Request(job=job, place=problem.problem_id, size=len(text) + len(problem.gold_answer))


def _as_grade(outcome: Outcome) -> Grade:
    if isinstance(outcome, str):
        return Grade(answer=None, verdict="error", layer=outcome)
    answer, verdict, layer = outcome
    return Grade(answer=answer, verdict=verdict, layer=layer)


def _make_error(kind: str, message: str) -> Exception:
    """The exception that `describe_failure` described."""
    return RuntimeError(message) if kind == "bug" else getattr(errors, kind, IRPOError)(message)


def _adapt_batch_size(child: _Child) -> None:
    seconds = time.monotonic() - child.batch_started
    if seconds < _BATCH_SECONDS / 2:
        child.batch_size = min(2 * child.batch_size, _MAX_BATCH)
    elif seconds > 2 * _BATCH_SECONDS:
        child.batch_size = max(child.batch_size // 2, 1)
