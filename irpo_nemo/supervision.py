"""What a stage owes the job that supervises it on a cluster (slurm/supervise.sh): to show that it gets on, to end when
told, and to write nothing any more once another start has taken its place. Without a supervisor, nothing here does
anything.

The lease is a file on the shared file system. Its first line names the start that may write; a second line, "stop",
asks it to end. A node that Slurm has given up may still run its processes while the job runs again elsewhere: they
find another name there and end.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from irpo_nemo.errors import MachineError

LEASE_VARIABLE = "IRPO_LEASE"
OWNER_VARIABLE = "IRPO_LEASE_OWNER"
LOGS_VARIABLE = "IRPO_RANK_LOGS"
HANG_VARIABLE = "IRPO_HANG_SECONDS"

_LOOK_SECONDS = 1.0

_hang_seconds = 0.0


def accept_supervision() -> None:
    """Follow the supervisor that started this process, if one did: its log folder, its lease, its patience."""
    if LOGS_VARIABLE in os.environ:
        _log_by_rank(Path(os.environ[LOGS_VARIABLE]))
    if LEASE_VARIABLE in os.environ:
        refuse_lost_lease()
        threading.Thread(target=_follow_lease, name="lease", daemon=True).start()
    if HANG_VARIABLE in os.environ:
        global _hang_seconds
        _hang_seconds = float(os.environ[HANG_VARIABLE])
        beat()


def beat() -> None:
    """Say that work gets on. When none is seen for long, this process prints the stacks of its threads and ends."""
    if _hang_seconds:
        faulthandler.dump_traceback_later(_hang_seconds, exit=True)


def refuse_lost_lease() -> None:
    """Check, right before something is put in its place, that no other start has taken over.

    Raises:
        MachineError: One has.
    """
    path = os.environ.get(LEASE_VARIABLE)
    if path is not None and _read_lease(Path(path))[0] not in ("", os.environ[OWNER_VARIABLE]):
        raise MachineError(f"{path}: another start of this job has taken over; this one ends.")


def note_failure(error: BaseException, message: str) -> None:
    """Leave the reason where the supervisor looks for the first failure of all ranks."""
    if LOGS_VARIABLE in os.environ:
        header = f"{time.time():.6f} {type(error).__name__} {_rank()} {os.uname().nodename}"
        path = Path(os.environ[LOGS_VARIABLE]) / f"failed_{_rank()}"
        path.write_text(f"{header}\n{message.rstrip()}\n", encoding="utf-8")


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _log_by_rank(folder: Path) -> None:
    """Send all output of this process to its rank's log; our own lines of rank 0 go to the job's log as well."""
    job_log = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8", errors="replace")
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(folder / f"rank_{_rank()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
    if _rank() == 0:
        handler = logging.StreamHandler(job_log)
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
        logging.getLogger("irpo_nemo").addHandler(handler)


def _read_lease(path: Path) -> tuple[str, bool]:
    """Who holds it, and whether the holder shall end; nobody when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return "", False
    return (lines[0], "stop" in lines[1:]) if lines else ("", False)


def _follow_lease() -> NoReturn:
    path, owner = Path(os.environ[LEASE_VARIABLE]), os.environ[OWNER_VARIABLE]
    was_told = False
    while True:
        time.sleep(_LOOK_SECONDS)
        holder, shall_end = _read_lease(path)
        if holder and holder != owner:
            print(f"{path}: another start of this job has taken over ({holder}); this one ends", file=sys.stderr)
            os._exit(1)
        if shall_end and not was_told:
            was_told = True
            os.kill(os.getpid(), signal.SIGUSR1)
