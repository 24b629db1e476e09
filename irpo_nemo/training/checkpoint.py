"""Distributed checkpoints of a training run: weights, optimizer, schedule, random state, and the step.

The data position is the step itself (`batches.GlobalBatches`). A checkpoint is written under a temporary name and
renamed when every rank has finished, so a folder `step_<n>` is whole. The format is Megatron's torch_dist, plus our
`checkpoint.json`, since Megatron-core 0.19 reads what 0.16 wrote but not the other way round. A run may go on with
other tensor, pipeline and data parallel sizes.
"""

import dataclasses
import logging
import queue
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from irpo_nemo.artifacts import explain_os_errors, publish_folder, read_json, write_json
from irpo_nemo.errors import ArtifactError
from irpo_nemo.training.model import IRPOModel
from irpo_nemo.training.parallel import is_rank_zero

logger = logging.getLogger(__name__)

DESCRIPTION = "checkpoint.json"

_RESHARDABLE = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Megatron's name for the sharding that lets a run continue with other tensor and pipeline sizes."""


@dataclass(frozen=True, kw_only=True)
class CheckpointDescription:
    """What a checkpoint belongs to."""

    step: int
    num_steps: int
    data_digest: str
    """Of the pairs or demonstrations."""
    world_size: int
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    megatron_core: str


def save_checkpoint(policy: IRPOModel, folder: Path, *, data_digest: str, keep: int) -> None:
    """Write `folder/step_<n>`, then drop all but the newest `keep`. Every rank calls this."""
    target = folder / f"step_{policy.step:08d}"
    temporary = target.with_suffix(".tmp")
    if is_rank_zero():
        with explain_os_errors(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    dist.barrier()
    _save(_sharded_state(policy, is_loading=False), temporary)
    if is_rank_zero():
        write_json(temporary / DESCRIPTION, dataclasses.asdict(_describe(policy, data_digest)))
        publish_folder(temporary, target)
        _drop_old(folder, keep)
    dist.barrier()


def save_weights(chunks: Sequence[Any], folder: Path) -> None:
    """Write the weights alone into the empty `folder`, as a training checkpoint has them. Every rank calls this."""
    _save(_sharded_weights(chunks), folder)


def load_weights(chunks: Sequence[Any], checkpoint: Path) -> None:
    """Fill `chunks` from a checkpoint with or without an optimizer. Every rank calls this.

    Raises:
        ArtifactError: The checkpoint is of another model.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException

    try:
        state = dist_checkpointing.load(_sharded_weights(chunks), str(checkpoint))
    except (CheckpointingException, CheckpointException, KeyError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{checkpoint}: does not hold the weights of this model ({reason})") from error
    _fill_chunks(chunks, state)


def _save(state: dict[str, Any], folder: Path) -> None:
    from megatron.core import dist_checkpointing

    _keep_write_results_here()
    with explain_os_errors(folder):
        dist_checkpointing.save(state, str(folder))


def _keep_write_results_here() -> None:
    """Spare the process that Megatron-core (0.16 to 0.19) starts to carry the results of writers in the background.

    Ours write while the rank waits, so a queue of this process does. The other process costs 280 MiB and a second or
    two, and stays for ever when its rank is killed.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = filesystem_async._results_queue or queue.Queue()


def _describe(policy: IRPOModel, data_digest: str) -> CheckpointDescription:
    return CheckpointDescription(
        step=policy.step,
        num_steps=policy.options.num_steps,
        data_digest=data_digest,
        world_size=dist.get_world_size(),
        tensor_model_parallel_size=policy.options.parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=policy.options.parallel.pipeline_model_parallel_size,
        megatron_core=version("megatron-core"),
    )


def _drop_old(folder: Path, keep: int) -> None:
    for path in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix != ".tmp")


def load_latest_checkpoint(policy: IRPOModel, folder: Path, *, data_digest: str) -> bool:
    """Continue from the newest checkpoint of `folder`; False when there is none. Every rank calls this.

    Removes what a killed run was writing.

    Raises:
        ArtifactError: The checkpoint belongs to other data.
    """
    from megatron.core import dist_checkpointing

    if is_rank_zero():
        for unfinished in folder.glob("step_*.tmp"):
            shutil.rmtree(unfinished)
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return False
    path = checkpoints[-1]
    found = CheckpointDescription(**read_json(path / DESCRIPTION))
    if found.data_digest != data_digest:
        raise ArtifactError(
            f"{path}: was made from other training data (digest {found.data_digest[:12]}, now {data_digest[:12]}). "
            f"Delete {folder.parent} to train again."
        )
    with _torch_adam_loads(policy.megatron_optimizer):
        wanted = _sharded_state(policy, is_loading=True)
        if found.world_size != dist.get_world_size():
            del wanted["random"]  # each rank's own; training draws no random numbers, since dropout is 0
        state = dist_checkpointing.load(wanted, str(path))
        policy.megatron_optimizer.load_state_dict(state["optimizer"])
    _fill_chunks(list(policy.chunks), state)
    policy.megatron_scheduler.load_state_dict(state["scheduler"])
    if "random" in state:
        _restore_random_state(state["random"])
    policy.step = found.step
    return True


def _sharded_state(policy: IRPOModel, *, is_loading: bool) -> dict[str, Any]:
    model = _sharded_weights(list(policy.chunks))
    optimizer_view = model["model0"] if len(model) == 1 else model
    return {
        **model,
        "optimizer": policy.megatron_optimizer.sharded_state_dict(
            optimizer_view, is_loading=is_loading, metadata=_RESHARDABLE
        ),
        "scheduler": policy.megatron_scheduler.state_dict(),
        "random": _sharded_random_state(),
    }


def _sharded_weights(chunks: Sequence[Any]) -> dict[str, Any]:
    return {f"model{index}": chunk.sharded_state_dict(metadata=_RESHARDABLE) for index, chunk in enumerate(chunks)}


def _fill_chunks(chunks: Sequence[Any], state: dict[str, Any]) -> None:
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{index}"])


@contextmanager
def _torch_adam_loads(optimizer: Any) -> Iterator[None]:
    """Let torch's AdamW take part in loading, which Megatron-core (0.16 to 0.19) wrote for other AdamWs.

    A fresh AdamW has no state, but Megatron asks it for its step; Megatron copies every entry of the state, the step
    too, from tensors that leave it out; and it gives all parameters one step tensor, which AdamW would then count up
    once for each.
    """
    parts = [part for part in _parts(optimizer) if isinstance(part.optimizer, torch.optim.AdamW)]
    for part in parts:
        _allocate_adam_state(part.optimizer)
        if hasattr(part, "_set_main_param_and_optimizer_states"):
            part._set_main_param_and_optimizer_states = partial(_set_state_and_step, part)
    yield
    for part in parts:
        part.__dict__.pop("_set_main_param_and_optimizer_states", None)
        for state in part.optimizer.state.values():
            state["step"] = state["step"].clone()


def _parts(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _allocate_adam_state(adam: torch.optim.AdamW) -> None:
    for parameter in (p for group in adam.param_groups for p in group["params"]):
        adam.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def _set_state_and_step(part: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
    group, order = part.model_param_group_index_map[model_param]
    step = part.optimizer.state[part.optimizer.param_groups[group]["params"][order]]["step"]
    type(part)._set_main_param_and_optimizer_states(part, model_param, {**tensors, "step": step})


def _sharded_random_state() -> Any:
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return ShardedObject("random", states, (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)


def _restore_random_state(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
