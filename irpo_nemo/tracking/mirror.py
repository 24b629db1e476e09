"""Sends what the trackers do not hold yet, until told to stop. One process at a time does so for a run.

`tracking/state.json` of the run folder holds the id of the tracker run, and how many points were offered to it, with
their digest. When the points no longer begin with those, a stage was done again from its start: a tracker run of
another id begins, because a point once sent stays.
"""

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from irpo_nemo.artifacts import digest_of, explain_os_errors, read_json, write_json
from irpo_nemo.config import IRPOConfig
from irpo_nemo.pipeline import plan
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.tracking.mlflow_run import MLflowRun
from irpo_nemo.tracking.points import Point, read_points
from irpo_nemo.tracking.references import Reference, read_references
from irpo_nemo.tracking.wandb_run import WandbRun, is_offline


class TrackerRun(Protocol):
    """One run in a tracker."""

    def send(self, points: Sequence[Point]) -> None:
        """Log the points that it does not hold yet."""

    def refer_to(self, references: Sequence[Reference]) -> None:
        """Log where the run's artifacts are."""

    def close(self, *, is_complete: bool) -> None:
        """Send what is under way and end; `is_complete` when the IRPO run is."""


def mirror(config: IRPOConfig, *, ended: Callable[[float], bool], is_last: bool) -> tuple[int, list[str]]:
    """Send points until `ended`, which waits so many seconds, and once more then.

    Args:
        config: The run's configuration.
        ended: Waits; True when there will be no more points.
        is_last: Refer to the artifacts, too, and write offline runs, which nobody can watch while they grow.

    Returns:
        How many points the run has, and what failed, in words.
    """
    folder = RunFolder(config.run_folder).tracking
    with _hold(folder):
        trackers = _Trackers()
        run_id = _identify(folder / "state.json", read_points(config))
        for name, start in asked_trackers(config, is_last=is_last).items():
            trackers.start(name, start, config, run_id)
        has_ended = False
        while not has_ended:
            has_ended = not trackers.runs or ended(config.tracking.every_seconds)
            num_points = _send_new(config, trackers, run_id)
        if is_last:
            references = list(read_references(config))
            trackers.each(lambda run: run.refer_to(references))
        is_complete = is_last and all(step.state == "done" for step in plan(config))
        trackers.each(lambda run: run.close(is_complete=is_complete))
    return num_points, trackers.failures


def _send_new(config: IRPOConfig, trackers: "_Trackers", run_id: str) -> int:
    points = read_points(config)
    _note(RunFolder(config.run_folder).tracking / "state.json", run_id, points)
    trackers.each(lambda run: run.send(points))
    return len(points)


def asked_trackers(config: IRPOConfig, *, is_last: bool) -> dict[str, Callable[[IRPOConfig, str], TrackerRun]]:
    """How to start each tracker that the configuration names and that has something to do now."""
    asked: dict[str, Callable[[IRPOConfig, str], TrackerRun]] = {}
    if config.tracking.wandb.enabled and (is_last or not is_offline(config)):
        asked["Weights & Biases"] = WandbRun
    if config.tracking.mlflow.enabled:
        asked["MLflow"] = MLflowRun
    return asked


class _Trackers:
    """The tracker runs that work. One that fails is told of and left alone: a network is no reason to stop a run."""

    def __init__(self) -> None:
        self.runs: dict[str, TrackerRun] = {}
        self.failures: list[str] = []

    def start(self, name: str, start: Callable[[IRPOConfig, str], TrackerRun], config: IRPOConfig, run_id: str) -> None:
        try:
            self.runs[name] = start(config, run_id)
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library comes up with
            self._give_up(name, error)

    def each(self, act: Callable[[TrackerRun], None]) -> None:
        for name, run in list(self.runs.items()):
            try:
                act(run)
            except Exception as error:  # noqa: BLE001
                del self.runs[name]
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.failures.append(f"{name}: {reason}")


def _identify(state: Path, points: Sequence[Point]) -> str:
    """The id of the tracker run that holds the beginning of `points`, or of a new one."""
    if state.exists():
        known = read_json(state)
        if known["digest"] == _digest(points[: known["points"]]):
            return str(known["id"])
    return secrets.token_hex(4)


def _note(state: Path, run_id: str, points: Sequence[Point]) -> None:
    write_json(state, {"id": run_id, "points": len(points), "digest": _digest(points)})


def _digest(points: Sequence[Point]) -> str:
    return digest_of([[point.axis, point.x, point.values] for point in points])


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Wait until no other process mirrors the run: one left over from a killed stage sends its last points."""
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
