"""The mirror beside a stage: a process of its own, so that no tracker's library, thread or network enters training.

It ends when the stage closes its end of a pipe, whatever ended the stage, after sending the last points.
"""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from irpo_nemo.config import IRPOConfig
from irpo_nemo.tracking.mirror import asked_trackers, mirror
from irpo_nemo.tracking.points import TRAINING_STAGES

logger = logging.getLogger(__name__)

_LAST_SECONDS = 120.0
"""How long a stage waits for the last points to arrive."""
_INTERRUPTED_SECONDS = 5.0
"""The same for one that ends early: who interrupts it will not wait long either."""

_STAGES_WITH_POINTS = (*TRAINING_STAGES, "grade")


@contextmanager
def followed(config: IRPOConfig, stage: str) -> Iterator[None]:
    """Mirror the run into its trackers during the block, if the stage has points to show, and once more at its end."""
    is_last = stage == "report"
    if not (is_last or stage in _STAGES_WITH_POINTS) or not asked_trackers(config, is_last=is_last):
        yield
        return
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    process = context.Process(target=_follow, args=(config, theirs, is_last), daemon=True)
    process.start()
    theirs.close()
    patience = _INTERRUPTED_SECONDS
    try:
        yield
        patience = _LAST_SECONDS
    finally:
        ours.close()
        process.join(patience)
        if process.is_alive():
            process.kill()
            logger.warning(
                "trackers: the last points did not arrive within %g s; the next stage sends them, or `irpo track %s`",
                patience,
                config.run_folder,
            )


def _follow(config: IRPOConfig, pipe: Connection, is_last: bool) -> None:
    """In the process of its own. A signal to the stage's group is the stage's to answer."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    package = logging.getLogger("irpo_nemo")
    package.setLevel(logging.INFO)
    package.addHandler(logging.StreamHandler(sys.stdout))
    _, failures = mirror(config, ended=pipe.poll, is_last=is_last)
    for failure in failures:
        logger.warning("%s. The next stage sends what is missing, or `irpo track %s`.", failure, config.run_folder)
