"""What all stages share: is the step's turn, what is left of an earlier attempt, and the manifest that makes it done.

A step that another run has finished is taken over (`reuse`). A stage that was killed finds its ticket. When the ticket
names the same settings and inputs, the stage goes on from what it left (finished parts, checkpoints); otherwise the
leftovers are of another attempt and are cleared. On several ranks, rank 0 alone touches these files. The shards of a
sample stage share one ticket; none of them clears anything, and none writes the manifest: the stage itself does, which
finds every part there and checks them all.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from irpo_nemo.artifacts import (
    FULL_DISK,
    TEMPORARY_SUFFIX,
    Manifest,
    explain_os_errors,
    hash_outputs,
    read_json,
    write_json,
    write_manifest,
)
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError, ConfigError, MachineError
from irpo_nemo.grading.pool import count_cores
from irpo_nemo.pipeline import Step, find_step, refuse_changes
from irpo_nemo.reuse import find_twin, hash_code, hash_own_model, is_taken_over, take_over
from irpo_nemo.sampling.gpus import list_gpus
from irpo_nemo.sampling.parts import Shard
from irpo_nemo.tracking.follow import followed

logger = logging.getLogger(__name__)

STAGES = ("prepare", "sft", "sample", "grade", "pair", "trial", "select", "train", "report")

_TICKET_WAIT_SECONDS = 120.0
_TAKE_OVER_WAIT_SECONDS = 7200.0
"""Rank 0 reads a taken-over model once to check it."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage hands to its manifest."""

    counts: dict[str, Any]
    seconds: dict[str, float]
    """Wall time by part, where a stage has parts; the frame adds `total`."""


def run_stage(config: IRPOConfig, stage: str, iteration: int | None) -> None:
    """Do one stage, or what is left of it; a finished one returns at once.

    Raises:
        ArtifactError: An earlier step is not done.
        ConfigError: The run has no such step, or finished it with other settings.
    """
    step = _find_open_step(config, stage, iteration)
    if step is None:
        return
    assert step.inputs is not None
    is_rank_zero = int(os.environ.get("RANK", "0")) == 0
    if is_rank_zero:
        if take_over(config, step):
            return
        _open_ticket(step)
    elif not _wait_for_ticket(config, step):
        return

    started = time.perf_counter()
    run: Callable[[IRPOConfig, int | None], StageResult] = import_module(f"irpo_nemo.stages.{stage}").run
    with followed(config, stage) if is_rank_zero else nullcontext():
        with explain_os_errors(config.run_folder, among=FULL_DISK):
            result = run(config, iteration)
        if is_rank_zero:
            manifest = Manifest(
                stage=stage,
                iteration=iteration,
                settings=step.settings,
                inputs=step.inputs,
                outputs=hash_outputs(config.run_folder, step.outputs),
                counts={**result.counts, "devices": _count_devices()},
                seconds={**result.seconds, "total": time.perf_counter() - started},
                code=hash_code(),
                model_hash=hash_own_model(config, step),
            )
            write_manifest(step.manifest, manifest)


def _count_devices() -> dict[str, int]:
    """Processor cores and GPUs that this stage has to itself, over all its machines."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    machines = world_size // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
    num_gpus = len(list_gpus())
    return {
        "cpu": count_cores() * machines,
        "gpu": num_gpus if world_size == 1 else world_size * bool(num_gpus),
    }


def run_shard(config: IRPOConfig, stage: str, iteration: int | None, shard: Shard) -> None:
    """Do what is left of one shard of the sample stage; shards may run at the same time, on several machines.

    Raises:
        ArtifactError: An earlier step is not done, or there are leftovers of another attempt.
        ConfigError: The run has no such step, it has no shards, or the run was finished with other settings.
    """
    if stage != "sample":
        raise ConfigError(f"shard={shard}: stage {stage} has no shards; leave it out. Only sample has.")
    step = _find_open_step(config, stage, iteration)
    if step is not None and find_twin(config, step) is None:  # else the stage itself takes it over
        _join_ticket(step)
        sample = import_module(f"irpo_nemo.stages.{stage}")
        with explain_os_errors(config.run_folder, among=FULL_DISK):
            sample.run_shard(config, iteration, shard)


def _find_open_step(config: IRPOConfig, stage: str, iteration: int | None) -> Step | None:
    """The step, if it is its turn; None when it is done."""
    step = find_step(config, stage, iteration)
    if step.state == "done":
        logger.info("%s is done already", step.title)
        return None
    if step.inputs is None:
        raise ArtifactError(
            f"{config.run_folder}: {step.title} comes {step.reason}, which is not done. Run that first."
        )
    refuse_changes(config, [step])
    return step


def _open_ticket(step: Step) -> None:
    with explain_os_errors(step.manifest):
        step.manifest.unlink(missing_ok=True)
        for path in step.leftovers:
            _remove_temporaries(path)
            if not _holds_ticket(step):
                _remove(path)
    write_json(step.ticket, _ticket_of(step))


def _join_ticket(step: Step) -> None:
    """Write the ticket, or find that another shard has; it stands before the first part of any."""
    if _holds_ticket(step):
        return
    leftover = next((path for path in step.leftovers if path.exists()), None)
    if leftover is not None and not _holds_ticket(step):
        raise ArtifactError(
            f"{leftover}: is left of another attempt at {step.title}, and a shard clears nothing that others may be "
            f"at. Delete {leftover.parent} and start the shards again."
        )
    write_json(step.ticket, _ticket_of(step))


def _wait_for_ticket(config: IRPOConfig, step: Step) -> bool:
    """Wait until rank 0 has opened the step; False when it has taken the step over instead."""
    patience = _TAKE_OVER_WAIT_SECONDS if config.reuse_from else _TICKET_WAIT_SECONDS
    deadline = time.monotonic() + patience
    while not _holds_ticket(step):
        if is_taken_over(step):
            return False
        if time.monotonic() > deadline:
            raise MachineError(
                f"{step.ticket}: rank 0 has not written it within {patience:g} s. "
                f"Is the run folder on a file system that all ranks share?"
            )
        time.sleep(0.05)
    return True


def _holds_ticket(step: Step) -> bool:
    return step.ticket.exists() and bool(read_json(step.ticket) == _ticket_of(step))


def _ticket_of(step: Step) -> dict[str, Any]:
    return {"settings": step.settings, "inputs": step.inputs}


def _remove_temporaries(path: Path) -> None:
    """Remove what a killed process was writing beside `path` or in it."""
    for temporary in [*path.parent.glob(f".{path.name}.*{TEMPORARY_SUFFIX}"), *path.rglob(f".*{TEMPORARY_SUFFIX}")]:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
