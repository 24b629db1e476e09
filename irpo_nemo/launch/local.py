"""Run what is left of a plan on this machine: one step after the other, each in processes of its own, so that what a
stage took (memory, a GPU, distributed groups) is given back when it ends.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from irpo_nemo.artifacts import read_manifest, write_json, write_text
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import dump_config
from irpo_nemo.launch.children import Interrupted, run_children
from irpo_nemo.launch.display import Display, summarize
from irpo_nemo.launch.environment import describe_environment
from irpo_nemo.launch.lock import hold_lock
from irpo_nemo.launch.progress import Progress, read_progress
from irpo_nemo.pipeline import Step, plan, refuse_changes
from irpo_nemo.run_folder import RunFolder


def run_locally(config: IRPOConfig) -> bool:
    """Do every step that is not done, in order; False when there was none.

    Raises:
        IRPOError: A stage failed for a reason that the user can mend, or the run folder is of another configuration.
        StageCrashed: A stage failed by a bug.
        Interrupted: SIGINT or SIGTERM.
    """
    if next_step(config) is None:
        return False
    folder = RunFolder(config.run_folder)
    display = Display()
    with hold_lock(folder.lock), _interruptible():
        open_run(config, folder)
        while (step := next_step(config)) is not None:
            _run_step(config, step, display)
    return True


def next_step(config: IRPOConfig) -> Step | None:
    """The first step that is not done.

    Raises:
        ConfigError: A finished step was made with other settings.
        ArtifactError: A finished step was made from other files.
    """
    steps = plan(config)
    refuse_changes(config, steps)
    return next((step for step in steps if step.state != "done"), None)


def open_run(config: IRPOConfig, folder: RunFolder) -> None:
    """Write what stages read (config.yaml) and what people ask later (environment.json, of the first start)."""
    write_text(folder.config, dump_config(config))
    if not folder.environment.exists():
        write_json(folder.environment, describe_environment())


def _run_step(config: IRPOConfig, step: Step, display: Display) -> None:
    folder = RunFolder(config.run_folder)
    title = step.stage if step.iteration is None else f"iteration {step.iteration}  {step.stage}"
    display.show(f"{title}  {_describe_start(step)}")

    def read() -> Progress | None:
        return read_progress(config, step)

    command = [sys.executable, "-m", "irpo_nemo", "stage", step.stage, str(folder.config)]
    if step.iteration is not None:
        command.append(f"iteration={step.iteration}")
    with display.watch(title, read) as tick:
        run_children(
            command,
            ranks=step.ranks,
            threads_per_rank=config.launcher.threads_per_rank if step.kind == "trainer" else None,
            log=folder.log(step.log_name),
            show=display.show,
            tick=tick,
            grace_seconds=config.launcher.grace_seconds,
        )
    manifest = read_manifest(step.manifest)
    assert manifest is not None, f"{step.title} ended well without a manifest"
    display.show(f"{title}  {summarize(manifest)}")


def _describe_start(step: Step) -> str:
    if step.state == "stale":
        return f"is done again: {step.reason}"
    verb = "goes on" if step.ticket.exists() else "starts"
    return f"{verb} on {step.ranks} ranks" if step.ranks > 1 else verb


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise `Interrupted` where the main thread is when SIGINT or SIGTERM comes."""

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise Interrupted(signum)

    previous = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
