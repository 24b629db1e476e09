"""Stopping at a step boundary: a signal to any rank becomes a checkpoint on all of them, and then the end.

SIGTERM is what schedulers send before they kill, SIGUSR1 what they can be asked to send earlier, SIGINT a person's.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from irpo_nemo.training.parallel import training_device

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
    """Whether a signal has come, to this rank or to another."""

    def __init__(self) -> None:
        self._signum = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note signals instead of dying of them, within the block; a second one ends the process at once."""
        previous = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def agreed(self) -> int:
        """The signal that some rank has got, else 0; the same on all ranks. All-reduces once over all ranks."""
        signum = torch.tensor(self._signum, device=training_device())
        dist.all_reduce(signum, op=dist.ReduceOp.MAX)
        return int(signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._signum:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._signum = signum
