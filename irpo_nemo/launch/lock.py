"""One `irpo run` per run folder at a time, held by flock, so that a killed run leaves no lock behind."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from irpo_nemo.artifacts import explain_os_errors
from irpo_nemo.errors import ArtifactError


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock at `path` for the length of the block.

    Raises:
        ArtifactError: Another run holds it, or the folder cannot be written.
    """
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(descriptor):
            holder = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown process"
            raise ArtifactError(
                f"{path.parent}: another `irpo run` is at work in this folder ({holder}). "
                f"Wait for it, or start another run with name=..."
            )
        with explain_os_errors(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether an `irpo run` is at work on the folder of this lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
