"""Run as a file, in a session of its own: starts a command, and ends its whole process group when either the command or
the process that wanted it is gone, whatever ended that. Imports nothing of this package.

    python guardian.py PARENT_PID COMMAND ...
"""

import os
import signal
import subprocess
import sys
import time
from types import FrameType

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 15.0


def main(parent: int, command: list[str]) -> int:
    """Wait for the command or the parent to end; the command's exit code."""
    asked_to_end = False

    def note(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal asked_to_end
        asked_to_end = True

    signal.signal(signal.SIGTERM, note)  # the group gets it too, so the command ends by itself
    process = subprocess.Popen(command, close_fds=False)
    deadline = None
    while process.poll() is None:
        if deadline is None and (asked_to_end or os.getppid() != parent):
            deadline = time.monotonic() + (_GRACE_SECONDS if asked_to_end else 0.0)
        if deadline is not None and time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    code = process.poll()
    if code is None or os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)
    return 128 - code if code is not None and code < 0 else int(code or 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
