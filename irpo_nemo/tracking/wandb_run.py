"""One Weights & Biases run. Only importer of wandb.

A row's number in W&B is the point's place in the run, and W&B keeps rows by number. Online, the server says with which
row a resumed run goes on. Offline there is nobody to ask, and of two folders with the same id, `wandb sync` lets the
second replace the first; so an offline run is written whole each time, and folders written before are removed.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from irpo_nemo.config import IRPOConfig
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.tracking.points import AXES, Point
from irpo_nemo.tracking.references import Reference


def is_offline(config: IRPOConfig) -> bool:
    """Whether W&B would write to a folder."""
    return (config.tracking.wandb.mode or os.environ.get("WANDB_MODE")) in ("offline", "dryrun")


class WandbRun:
    """A W&B run, started or resumed."""

    def __init__(self, config: IRPOConfig, run_id: str) -> None:
        """Start or resume the run `run_id`.

        Raises:
            wandb.errors.Error: There is no key, or no server answers.
        """
        folder = RunFolder(config.run_folder).tracking
        self._old_folders = list(folder.glob("wandb/offline-run-*")) if is_offline(config) else []
        if is_offline(config):
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means that nothing leaves the machine
        import wandb

        self._run: Any = wandb.init(
            id=run_id,
            name=config.name,
            project=config.tracking.wandb.project,
            entity=config.tracking.wandb.entity,
            mode=cast(Any, config.tracking.wandb.mode),
            resume=None if is_offline(config) else "allow",
            dir=str(folder),
            config=dataclasses.asdict(config),
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        self._num_sent: int = self._run.starting_step
        self._defined = set(AXES)

    def send(self, points: Sequence[Point]) -> None:
        """Log the points that the run does not hold yet."""
        for row in range(self._num_sent, len(points)):
            point = points[row]
            self._define_axis(point)
            self._run.log({point.axis: point.x, **point.values}, step=row, commit=True)
        self._num_sent = max(self._num_sent, len(points))

    def _define_axis(self, point: Point) -> None:
        """Say what the point's values are drawn over; by name, because "*" would draw one axis over another."""
        for name in point.values.keys() - self._defined:
            self._run.define_metric(name, step_metric=point.axis)
            self._defined.add(name)

    def refer_to(self, references: Iterable[Reference]) -> None:
        """Log an artifact of references to the run's files."""
        import wandb

        references = list(references)
        digests = {reference.name: reference.digest for reference in references}
        artifact = wandb.Artifact(f"run-{self._run.id}", type="irpo-run", metadata={"sha256": digests})
        for reference in references:
            artifact.add_reference(reference.uri, name=reference.name, checksum=False)
        self._run.log_artifact(artifact)

    def close(self, *, is_complete: bool) -> None:  # noqa: ARG002 - MLflow asks; W&B needs no word
        """Send what is under way and end."""
        import wandb

        written = Path(self._run.dir).parent
        self._run.finish()
        wandb.teardown()  # an offline run's file may be written to until its service has ended
        for folder in self._old_folders:
            if folder != written:
                shutil.rmtree(folder)
