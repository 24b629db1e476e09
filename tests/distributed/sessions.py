"""Whole training sessions on the ranks of a test, and ways for them to die."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.artifacts import write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.records import PreferencePair
from irpo_nemo.run_folder import IterationFolder
from tests.distributed.ranks import run_on_ranks
from tests.training.tiny import make_model_folder, make_pairs

TIMED = {"tokens_per_second", "pairs_per_second", "memory_gib", "mfu"}
"""Metrics that depend on the machine's mood."""


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
        return sorted(path.name for path in self.folder.train.checkpoints.iterdir())

    @property
    def weights(self) -> bytes:
        return (self.folder.hf / "model.safetensors").read_bytes()

    def run(self, config: IRPOConfig, ranks: int = 1) -> dict[str, Any]:
        """Train from what is there to the end; return the counts of the outcome."""
        return run_on_ranks(train, ranks, config, self)[0]  # type: ignore[no-any-return]

    def run_until_killed(self, config: IRPOConfig, ranks: int, *, step: int, in_checkpoint: bool = False) -> None:
        """Train until SIGKILL hits every rank at the start of `step`, or rank 0 in the write of its checkpoint."""
        with pytest.raises(AssertionError, match=f"died with exit code -{signal.SIGKILL.value}"):
            run_on_ranks(train_and_die, ranks, config, self, step, in_checkpoint)

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


def train_and_die(config: IRPOConfig, session: Session, step: int, in_checkpoint: bool) -> None:
    """On each rank."""
    from irpo_nemo.training import checkpoint
    from irpo_nemo.training.model import IRPOModel

    take_step, publish = IRPOModel.training_step, checkpoint.publish_folder

    def take_step_or_die(self: IRPOModel, *args: Any, **options: Any) -> None:
        if self.step == step and not in_checkpoint:
            os.kill(os.getpid(), signal.SIGKILL)
        take_step(self, *args, **options)

    def publish_or_die(temporary: Path, target: Path) -> None:
        if target.name == f"step_{step:08d}" and in_checkpoint:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(temporary, target)

    IRPOModel.training_step, checkpoint.publish_folder = take_step_or_die, publish_or_die
    train(config, session)


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
