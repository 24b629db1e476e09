"""Distributed checkpoints of a training run: weights, optimizer, schedule, random state, and the step.

The data position is the step itself (`batches.GlobalBatches`). A checkpoint is written under a temporary name, by
default while training goes on, and renamed when every rank has finished; then the link `latest` is moved to it, and
that is where a run continues. So a kill at any moment costs the steps since `latest`. The format is Megatron's
torch_dist, plus our `checkpoint.json`, since Megatron-core 0.19 reads what 0.16 wrote but not the other way round. A
run may go on with other tensor, pipeline and data parallel sizes.
"""

import dataclasses
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

from irpo_nemo.artifacts import (
    TEMPORARY_SUFFIX,
    explain_os_errors,
    publish_folder,
    read_json,
    replace_link,
    write_json,
)
from irpo_nemo.errors import ArtifactError
from irpo_nemo.training.model import IRPOModel
from irpo_nemo.training.parallel import is_rank_zero
from irpo_nemo.training.sharded_save import ShardedSave

DESCRIPTION = "checkpoint.json"
LATEST = "latest"
BEST = "best"

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
    validation_loss: float | None
    """On examples that were held out; None where there were none, or it was not measured at this step."""


class Checkpoints:
    """The checkpoints of one training run. Every rank has one, and calls its methods at the same time.

    Args:
        folder: `step_<n>` and the links `latest` and `best`.
        data_digest: Of the pairs or demonstrations.
        keep: Newest checkpoints to keep; the best of those with a validation loss stays too.
        in_background: Write while training goes on.
    """

    def __init__(self, folder: Path, *, data_digest: str, keep: int, in_background: bool) -> None:
        self.folder = folder
        self.data_digest = data_digest
        self.keep = keep
        self.in_background = in_background
        self._pending: tuple[ShardedSave, CheckpointDescription] | None = None

    def save(self, policy: IRPOModel, *, validation_loss: float | None = None) -> None:
        """Start to write `step_<n>`, once the one before is complete; in the foreground, complete it as well."""
        self.wait()
        description = _describe(policy, self.data_digest, validation_loss)
        temporary = self._path(description).with_suffix(TEMPORARY_SUFFIX)
        if is_rank_zero():
            with explain_os_errors(self.folder):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        dist.barrier()
        policy.gather_weights()
        state = _sharded_state(policy, is_loading=False)
        self._pending = ShardedSave(state, temporary, in_background=self.in_background), description
        if not self.in_background:
            self.wait()

    def complete_if_written(self) -> None:
        """Complete the checkpoint under way, if there is one and all its files are written; else do nothing."""
        if self._pending is not None and self._pending[0].is_done():
            self.wait()

    def wait(self) -> None:
        """Complete the checkpoint under way, if there is one: it gets its name, then `latest` is moved to it."""
        if self._pending is None:
            return
        save, description = self._pending
        save.finish()
        self._pending = None
        if is_rank_zero():
            target = self._path(description)
            temporary = target.with_suffix(TEMPORARY_SUFFIX)
            write_json(temporary / DESCRIPTION, dataclasses.asdict(description))
            publish_folder(temporary, target)
            replace_link(self.folder / LATEST, target)
            self._drop_others(target)
        dist.barrier()

    def load_latest(self, policy: IRPOModel) -> bool:
        """Continue from `latest`; False when there is none. Removes what a killed run was writing.

        Raises:
            ArtifactError: The checkpoint belongs to other data.
        """
        if is_rank_zero():
            for unfinished in self.folder.glob(f"step_*{TEMPORARY_SUFFIX}"):
                shutil.rmtree(unfinished)
        path = (self.folder / LATEST).resolve()
        if not path.is_dir():
            return False
        found = read_description(path)
        if found.data_digest != self.data_digest:
            raise ArtifactError(
                f"{path}: was made from other training data (digest {found.data_digest[:12]}, now "
                f"{self.data_digest[:12]}). Delete {self.folder.parent} to train again."
            )
        _load(policy, path, same_ranks=found.world_size == dist.get_world_size())
        policy.step = found.step
        return True

    def _path(self, description: CheckpointDescription) -> Path:
        return self.folder / f"step_{description.step:08d}"

    def _drop_others(self, latest: Path) -> None:
        """Keep the newest up to `latest` (what a kill left beyond it is not followed), and the best of them.

        Of equally good ones the earliest is the best.
        """
        descriptions = {path: read_description(path) for path in list_checkpoints(self.folder) if path <= latest}
        kept = set(list(descriptions)[-self.keep :])
        losses = {path: found.validation_loss for path, found in descriptions.items()}
        if measured := {path: loss for path, loss in losses.items() if loss is not None}:
            best = min(measured, key=lambda path: measured[path])
            replace_link(self.folder / BEST, best)
            kept.add(best)
        for path in set(list_checkpoints(self.folder)) - kept:
            shutil.rmtree(path)


def save_weights(chunks: Sequence[Any], folder: Path) -> None:
    """Write the weights alone into the empty `folder`, as a training checkpoint has them. Every rank calls this."""
    ShardedSave(_sharded_weights(chunks), folder, in_background=False).finish()


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


def _describe(policy: IRPOModel, data_digest: str, validation_loss: float | None) -> CheckpointDescription:
    return CheckpointDescription(
        step=policy.step,
        num_steps=policy.options.num_steps,
        data_digest=data_digest,
        world_size=dist.get_world_size(),
        tensor_model_parallel_size=policy.options.parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=policy.options.parallel.pipeline_model_parallel_size,
        megatron_core=version("megatron-core"),
        validation_loss=validation_loss,
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix != TEMPORARY_SUFFIX)


def read_description(checkpoint: Path) -> CheckpointDescription:
    """What `checkpoint` belongs to."""
    return CheckpointDescription(**read_json(checkpoint / DESCRIPTION))


def _load(policy: IRPOModel, path: Path, *, same_ranks: bool) -> None:
    from megatron.core import dist_checkpointing

    with _torch_adam_loads(policy.megatron_optimizer):
        wanted = _sharded_state(policy, is_loading=True)
        if not same_ranks:
            del wanted["random"]  # each rank's own; training draws no random numbers, since dropout is 0
        state = dist_checkpointing.load(wanted, str(path))
        policy.megatron_optimizer.load_state_dict(state["optimizer"])
    _fill_chunks(list(policy.chunks), state)
    policy.megatron_scheduler.load_state_dict(state["scheduler"])
    if "random" in state:
        _restore_random_state(state["random"])


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
