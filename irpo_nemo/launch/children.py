"""The processes of one stage on this machine: one, or several ranks that live and die together.

Rank 0's standard output reaches the terminal and its log; everything else goes to log files. A child that fails
sends its reason through a pipe, so that the launcher shows the one failure that came first, once. Children are killed
when the launcher dies, whatever killed it.
"""

import contextlib
import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpo_nemo import errors
from irpo_nemo.artifacts import explain_os_errors
from irpo_nemo.errors import IRPOError, MachineError
from irpo_nemo.supervision import note_failure

PARENT_VARIABLE = "IRPO_LAUNCHER_PID"
FAILURE_VARIABLE = "IRPO_FAILURE_PIPE"

_POLL_SECONDS = 0.05
_PUMP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_TRACEBACK_LINES = 12
_PIPE_BYTES = 65536
_POLITE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP threads sleep while they wait. By default they spin, and when the machine has other work to do as well, each
small operation then waits for a time slice: sampling from a tiny model on 2 shared cores was 20 times slower."""
_MESSAGE_LIMIT = 10000
"""Characters of a reason: a pipe holds 64 KiB, and JSON may need six bytes a character."""


class StageCrashed(Exception):  # noqa: N818 - said to people as it is
    """A stage failed by a bug: its message holds the end of the traceback and the log's path."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM reached the launcher."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@dataclass(frozen=True)
class Child:
    """One rank of a stage."""

    rank: int
    process: "subprocess.Popen[str]"
    log: Path
    failure_pipe: int
    """Where its reason arrives; a pipe, because the disk may be full."""


def run_children(
    command: Sequence[str],
    *,
    ranks: int,
    threads_per_rank: int | None,
    log: Path,
    show: Callable[[str], None],
    tick: Callable[[], None],
    grace_seconds: float,
) -> None:
    """Run `command` in `ranks` processes until all have ended.

    Args:
        command: Program and arguments.
        ranks: Processes; each gets its place in torch.distributed's environment variables.
        threads_per_rank: CPU threads of each; None leaves the machine to a stage of one process.
        log: Rank 0's log; the others' stand beside it.
        show: Gets each line that rank 0 prints.
        tick: Called now and then while they run.
        grace_seconds: How long they may take to end after a signal.

    Raises:
        IRPOError: The one that a child ended with.
        StageCrashed: A child ended by a bug.
        Interrupted: A signal reached this process; the children got it too.
    """
    with explain_os_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        failure_path(log).unlink(missing_ok=True)
        port = _free_port()
        children: list[Child] = []
        try:
            for rank in range(ranks):
                children.append(_start(command, rank, ranks, port, threads_per_rank, log))
        except BaseException:
            _kill(children)
            raise
    pump = threading.Thread(target=_pump, args=(children[0], show), daemon=True)
    pump.start()
    try:
        failed = _wait(children, tick)
    except KeyboardInterrupt as interruption:
        _stop(children, getattr(interruption, "signum", signal.SIGINT), grace_seconds)
        raise
    finally:
        _kill(children)
        pump.join(timeout=_PUMP_SECONDS)
    try:
        if failed:
            _raise_failure(children, failed, log)
    finally:
        for child in children:
            os.close(child.failure_pipe)


def die_with_launcher() -> None:
    """In a child: ask Linux for SIGKILL at the launcher's death, also when that has happened already."""
    launcher_pid = os.environ.get(PARENT_VARIABLE)
    if launcher_pid is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher_pid):
        os._exit(1)


def send_failure(error: BaseException) -> bool:
    """In a child: tell the launcher or supervisor why; False when no launcher is waiting for it."""
    is_bug = not isinstance(error, IRPOError)
    message = "".join(traceback.format_exception(error)) if is_bug else str(error)
    with contextlib.suppress(OSError):
        note_failure(error, message[-_MESSAGE_LIMIT:])
    pipe = os.environ.get(FAILURE_VARIABLE)
    if pipe is None:
        return False
    report = {"kind": type(error).__name__, "is_bug": is_bug, "message": message[-_MESSAGE_LIMIT:]}
    with contextlib.suppress(OSError):
        os.write(int(pipe), json.dumps({**report, "time": time.monotonic()}).encode())
    return True


def failure_path(log: Path) -> Path:
    """Where the launcher notes why a stage failed, for `irpo status`."""
    return log.with_suffix(".failure.json")


def _start(command: Sequence[str], rank: int, ranks: int, port: int, threads: int | None, log: Path) -> Child:
    rank_log = log if rank == 0 else log.with_name(f"{log.stem}_rank{rank}.log")
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    environment = (
        _POLITE_THREADS
        | os.environ
        | {
            "PYTHONUNBUFFERED": "1",
            PARENT_VARIABLE: str(os.getpid()),
            FAILURE_VARIABLE: str(write_end),
        }
    )
    if threads is not None:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(threads),
        }
    with rank_log.open("a", encoding="utf-8") as file:
        file.write(f"--- {shlex.join(command)}  rank {rank} of {ranks}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if rank == 0 else file,
            stderr=file,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=(write_end,),
        )
    os.close(write_end)
    return Child(rank, process, rank_log, read_end)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pump(child: Child, show: Callable[[str], None]) -> None:
    """Copy rank 0's standard output to its log and to `show`, line by line."""
    stream = child.process.stdout
    assert stream is not None, "rank 0 is started with a pipe"
    with child.log.open("a", encoding="utf-8") as log:
        for line in stream:
            show(line.rstrip("\n"))
            with contextlib.suppress(OSError):  # a full disk must not stop the terminal
                log.write(line)
                log.flush()


def _wait(children: list[Child], tick: Callable[[], None]) -> list[Child]:
    """Wait until all have ended well, or the first have failed: return those."""
    while True:
        codes = [child.process.poll() for child in children]
        failed = [child for child, code in zip(children, codes, strict=True) if code]
        if failed or all(code == 0 for code in codes):
            return failed
        tick()
        time.sleep(_POLL_SECONDS)


def _stop(children: list[Child], signum: int, grace_seconds: float) -> None:
    """Pass a signal on and give the children a moment to end by themselves."""
    _signal(children, signum)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(child.process.poll() is None for child in children):
        time.sleep(_POLL_SECONDS)


def _kill(children: list[Child]) -> None:
    """End every process of every rank's session, whatever state it is in."""
    _signal(children, signal.SIGKILL)
    for child in children:
        child.process.wait()


def _signal(children: list[Child], signum: int) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signum)


def _raise_failure(children: list[Child], failed: list[Child], log: Path) -> None:
    killed = [child for child in failed if child.process.returncode == -signal.SIGKILL]
    reports = [(child, report) for child in children if (report := _read_report(child))]
    if killed or not reports:
        raise _unexplained_end((killed or failed)[0])
    child, report = min(reports, key=lambda item: item[1]["time"])
    with contextlib.suppress(OSError):
        failure_path(log).write_text(json.dumps({**report, "rank": child.rank}))
    if not report["is_bug"]:
        raise getattr(errors, report["kind"], IRPOError)(report["message"])
    end = "\n".join(report["message"].rstrip().splitlines()[-_TRACEBACK_LINES:])
    raise StageCrashed(f"{end}\nrank {child.rank} failed; its log is {child.log}")


def _read_report(child: Child) -> dict[str, Any] | None:
    try:
        data = os.read(child.failure_pipe, _PIPE_BYTES)
        return dict(json.loads(data)) if data else None
    except (BlockingIOError, ValueError):
        return None


def _unexplained_end(child: Child) -> Exception:
    code = child.process.returncode
    if code == -signal.SIGKILL:
        return MachineError(
            f"{child.log}: rank {child.rank} was killed (signal 9), most often because memory ran out. "
            f"Lower the batch sizes or free memory, then run the same command again."
        )
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    lines = child.log.read_text(errors="replace").splitlines() if child.log.exists() else []
    end = "\n".join(lines[-_TRACEBACK_LINES:])
    return StageCrashed(f"{end}\nrank {child.rank} {how}; its log is {child.log}")
