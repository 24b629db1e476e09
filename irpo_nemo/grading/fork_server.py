"""The other side of `GradingPool`: a small process that forks the children that grade, and what a child does.

The server imports the grader and goes once through its golden cases, so that a child is born within milliseconds with
all packages loaded and caches warm. It runs one thread and forks before it has done anything else, which is what makes
forking safe. It kills its children when its parent is gone; Linux kills them when the server itself is.

A child may use so many seconds of processor time for a job (its timer's signal ends it, even inside one long
multiplication) and so many bytes of address space. It writes each result as soon as it has it, so whoever reads knows
which job a dead child was at. Signals of a terminal or of Slurm are ignored here: the parent alone decides, or a
interrupted run would look like crashed graders.

Messages are JSON: what a child says is read as data, even if an answer should have found a way to take it over.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from irpo_nemo.errors import ConfigError, IRPOError
from irpo_nemo.grading.grade import Grade, Grader
from irpo_nemo.records import Problem

FORK, END = b"F", b"E"
REQUEST = struct.Struct("!ci")
"""To the server: FORK with a socket attached, or END with the process id of a child."""
REPLY = struct.Struct("!i")
"""The process id of a new child (an error number below zero when there is none), or the wait status of an ended one."""
MEMORY_EXIT = 77
"""Exit code of a child that ran out of memory."""

_LENGTH = struct.Struct("!I")
_POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may use."""

    deadline_seconds: float
    """Processor time for one job."""
    memory_bytes: int
    """Address space."""


def send_message(connection: socket.socket, message: Any) -> None:
    """Send a JSON value, its length first."""
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive_message(connection: socket.socket) -> Any:
    """Wait for a JSON value.

    Raises:
        EOFError: The other side is gone.
    """
    (length,) = _LENGTH.unpack(receive_exactly(connection, _LENGTH.size))
    return json.loads(receive_exactly(connection, length))


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Wait for `size` bytes.

    Raises:
        EOFError: The other side is gone.
    """
    data = bytearray()
    while len(data) < size:
        block = connection.recv(min(size - len(data), 1 << 20))
        if not block:
            raise EOFError
        data += block
    return bytes(data)


def find_grader(name: str) -> Grader:
    """A grader of this package by its name; a name with a dot is the path of a module that is a grader."""
    if "." in name:
        return cast(Grader, importlib.import_module(name))
    from irpo_nemo.grading import GRADERS

    return GRADERS[name]


def find_auditor(name: str) -> Grader:
    """The auditor of a grader: its second opinion.

    Raises:
        ConfigError: There is none.
    """
    from irpo_nemo.grading.audit import AUDITORS

    if name not in AUDITORS:
        raise ConfigError(
            f"grading.audit: the {name} grader has no auditor; there is one for {', '.join(AUDITORS)}. "
            "Leave the audit out."
        )
    return AUDITORS[name]


def serve(control_descriptor: int) -> None:
    """Run the server until the parent closes its end of the control socket, or is gone."""
    for signum in _IGNORED_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    control = socket.socket(fileno=control_descriptor)
    parent = os.getppid()
    settings = receive_message(control)
    try:
        graders = _load_graders(settings["grader"], needs_auditor=settings["audit"])
    except Exception as error:  # noqa: BLE001 - whatever is wrong is the parent's to report
        send_message(control, describe_failure(error))
        return
    send_message(control, None)
    limits = Limits(**settings["limits"])
    children: set[int] = set()
    try:
        with contextlib.suppress(EOFError, ConnectionError):
            while _wait_for_request(control, parent):
                _answer_request(control, children, graders, limits)
    finally:
        for child in children:
            _end(child)


def _load_graders(name: str, *, needs_auditor: bool) -> dict[str, Grader]:
    """The graders by what a job calls them, loaded and warm."""
    graders = {"grade": find_grader(name)}
    if needs_auditor:
        graders["audit"] = find_auditor(name)
    for grader in graders.values():
        for problem, text, _ in graders["grade"].golden_cases():
            with contextlib.suppress(Exception):  # the pool's self-test reports it
                grader.grade(problem, text)
        with contextlib.suppress(Exception):
            examine_packages(grader)
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    return graders


def examine_packages(grader: Grader) -> None:
    """Let a grader that stands on packages of others look whether they do what they should.

    Raises:
        MachineError: They do not.
    """
    if hasattr(grader, "self_test"):
        grader.self_test()


def _wait_for_request(control: socket.socket, parent: int) -> bool:
    """Whether there is something to read; False when the parent is gone although somebody holds its socket open."""
    while not select.select([control], [], [], _POLL_SECONDS)[0]:
        if os.getppid() != parent:
            return False
    return True


def _answer_request(control: socket.socket, children: set[int], graders: Mapping[str, Grader], limits: Limits) -> None:
    data, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 1)
    if not data:
        raise EOFError
    kind, pid = REQUEST.unpack(data + receive_exactly(control, REQUEST.size - len(data)))
    if kind == END:
        children.discard(pid)
        control.sendall(REPLY.pack(_end(pid)))
        return
    (descriptor,) = descriptors
    server = os.getpid()
    try:
        child = os.fork()
    except OSError as error:
        child = -(error.errno or 1)
    if child == 0:
        control.close()
        _be_child(socket.socket(fileno=descriptor), server, graders, limits)
    os.close(descriptor)
    if child > 0:
        children.add(child)
    control.sendall(REPLY.pack(child))


def _end(child: int) -> int:
    """Kill a child, which may have ended by itself; its wait status. Not reaped before, so the id is still its own."""
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _be_child(connection: socket.socket, server: int, graders: Mapping[str, Grader], limits: Limits) -> NoReturn:
    """Grade until the parent closes the connection; never return into the server's code."""
    code = 1
    try:
        _die_with(server)
        _lower_limits(limits)
        _do_jobs(connection, graders, limits.deadline_seconds)
    except (EOFError, ConnectionError):
        code = 0
    except MemoryError:
        code = MEMORY_EXIT
    finally:
        os._exit(code)


def _die_with(server: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)


def _lower_limits(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    silence = os.open(os.devnull, os.O_WRONLY)  # parsers complain about every malformed answer
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def _do_jobs(connection: socket.socket, graders: Mapping[str, Grader], deadline_seconds: float) -> NoReturn:
    while True:
        for job in receive_message(connection):
            signal.setitimer(signal.ITIMER_PROF, deadline_seconds)
            result = _do_job(job, graders)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.sendall(json.dumps(result).encode() + b"\n")


def _do_job(job: list[Any], graders: Mapping[str, Grader]) -> Any:
    """A list for a grade, a boolean for a comparison, true for sound packages, an object for a failure."""
    kind, *arguments = job
    try:
        if kind == "examine":
            examine_packages(graders["grade"])
            return True
        if kind == "compare":
            return bool(graders["grade"].is_same(*arguments))
        gold_answer, choice_labels, choices, text = arguments
        problem = Problem(
            problem_id="", question="", gold_answer=gold_answer, choice_labels=choice_labels, choices=choices
        )
        return write_grade(graders[kind].grade(problem, text))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - one answer that breaks a grader must not end the others
        return describe_failure(error)


def write_grade(grade: Grade) -> list[str | None]:
    """A grade as JSON."""
    return [grade.answer, grade.verdict, grade.layer]


def describe_failure(error: Exception) -> dict[str, str]:
    """An exception as JSON: `kind` is that of an IRPOError, or "bug"."""
    if isinstance(error, IRPOError):
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "bug", "message": "".join(traceback.format_exception(error, limit=-4)).rstrip()}
