"""Whole training sessions on the ranks of a test, and ways for them to die."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from irpo_nemo.artifacts import write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.records import PreferencePair
from irpo_nemo.run_folder import IterationFolder
from tests.distributed.ranks import run_on_ranks
from tests.training.tiny import make_model_folder, make_pairs

TIMED = {"tokens_per_second", "pairs_per_second", "memory_gib", "mfu"}
"""Metrics that depend on the machine's mood."""


Moment = Literal["step", "write", "publish", "link"]
"""Where a rank dies: as a step starts, with half a file of that step's checkpoint written (whatever training does
meanwhile), before the checkpoint gets its name, or before `latest` is moved to it."""


@dataclass(frozen=True)
class Session:
    """The folder of one iteration; `model` and the pairs are M_t's."""

    model: Path
    folder: IterationFolder

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        lines = self.folder.train.metrics.read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.folder.train.checkpoints.iterdir() if not path.is_symlink())

    @property
    def latest(self) -> str:
        return (self.folder.train.checkpoints / "latest").readlink().name

    @property
    def weights(self) -> bytes:
        return (self.folder.hf / "model.safetensors").read_bytes()

    def run(self, config: IRPOConfig, ranks: int = 1) -> dict[str, Any]:
        """Train from what is there to the end; return the counts of the outcome."""
        return run_on_ranks(train, ranks, config, self)[0]  # type: ignore[no-any-return]

    def run_until_killed(self, config: IRPOConfig, ranks: int, *, step: int, moment: Moment = "step") -> None:
        """Train until SIGKILL hits every rank at a moment of `step`."""
        with pytest.raises(AssertionError, match=f"died with exit code -{signal.SIGKILL.value}"):
            run_on_ranks(train_and_die, ranks, config, self, step, moment)

    def run_with_slow_checkpoint(
        self, config: IRPOConfig, ranks: int, *, step: int, until: int
    ) -> list[tuple[int, int]]:
        """Train to the end, but let no file of the checkpoint of `step` be written before `until` steps are taken.

        Returns, by rank, how many steps were taken when the files were written, and when the checkpoint was complete.
        """
        return run_on_ranks(train_with_slow_checkpoint, ranks, config, self, step, until)

    def run_until_signal(self, config: IRPOConfig, ranks: int, *, step: int, signum: int) -> list[int]:
        """Train until the last rank gets a signal in `step`; return each rank's exit code."""
        return run_on_ranks(train_and_be_told, ranks, config, self, step, signum)


def make_session(root: Path, *, num_pairs: int = 21, model: Path | None = None) -> Session:
    """A folder with pairs, and M_t when none is given."""
    pairs = make_pairs(num_pairs)
    folder = IterationFolder(root)
    write_records(folder.pairs, pairs, PreferencePair)
    return Session(model or make_model_folder(root / "model"), folder)


def train(config: IRPOConfig, session: Session) -> dict[str, Any]:
    """On each rank."""
    from irpo_nemo.training.session import train_irpo

    folder = session.folder
    return train_irpo(
        config,
        iteration=0,
        model=session.model,
        pairs=folder.pairs,
        reference=folder.reference,
        folder=folder.train,
        export_to=folder.hf,
    ).counts


def die_before(owner: Any, function: str, is_time: Callable[..., bool]) -> None:
    """Let SIGKILL hit this process at a call of a function for whose arguments it is time."""
    original = getattr(owner, function)

    def call(*args: Any, **options: Any) -> Any:
        if is_time(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, function, call)


def train_and_die(config: IRPOConfig, session: Session, step: int, moment: Moment) -> None:
    """On each rank."""
    from irpo_nemo.training import checkpoint, sharded_save
    from irpo_nemo.training.model import IRPOModel

    name = f"step_{step:08d}"

    def is_half_written(transforms: Any, number: int, bucket: Any) -> bool:  # noqa: ARG001
        path = Path(bucket[0])
        if path.parent.name != f"{name}.tmp":
            return False
        path.write_bytes(b"half a file")
        time.sleep(0.3)
        return True

    if moment == "step":
        die_before(IRPOModel, "training_step", lambda policy, *_: policy.step == step)
    elif moment == "write":
        die_before(sharded_save, "_write_bucket", is_half_written)
    elif moment == "publish":
        die_before(checkpoint, "publish_folder", lambda _, target: target.name == name)
    else:
        die_before(checkpoint, "replace_link", lambda _, target: target.name == name)
    train(config, session)


def train_with_slow_checkpoint(config: IRPOConfig, session: Session, step: int, until: int) -> tuple[int, int]:
    """On each rank."""
    from irpo_nemo.training import sharded_save
    from irpo_nemo.training.model import IRPOModel

    take_step, write, finish = IRPOModel.training_step, sharded_save._write_bucket, sharded_save.ShardedSave.finish
    name, taken, seen = f"step_{step:08d}.tmp", [0], {}
    may_write = threading.Event()

    def count_step(self: IRPOModel, *args: Any, **options: Any) -> None:
        take_step(self, *args, **options)
        taken[0] = self.step
        if self.step == until:
            may_write.set()

    def write_late(transforms: Any, number: int, bucket: Any) -> Any:
        if Path(bucket[0]).parent.name == name:
            assert may_write.wait(timeout=60)
            seen["written"] = taken[0]
        return write(transforms, number, bucket)

    def note_end(self: Any) -> None:
        if self._folder.name == name:
            seen["complete"] = taken[0]
        finish(self)

    IRPOModel.training_step, sharded_save._write_bucket = count_step, write_late
    sharded_save.ShardedSave.finish = note_end
    train(config, session)
    return seen["written"], seen["complete"]


def train_and_be_told(config: IRPOConfig, session: Session, step: int, signum: int) -> int:
    """On each rank."""
    import torch.distributed as dist

    from irpo_nemo.training.model import IRPOModel

    take_step = IRPOModel.training_step

    def take_step_when_told(self: IRPOModel, *args: Any, **options: Any) -> None:
        if self.step == step and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signum)
        take_step(self, *args, **options)

    IRPOModel.training_step = take_step_when_told
    with pytest.raises(SystemExit) as ended:
        train(config, session)
    return int(str(ended.value.code))
