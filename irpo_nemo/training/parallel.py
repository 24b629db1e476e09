"""The ranks of one training job: process group, Megatron's parallel groups, and who this rank is.

Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as launchers and torchrun set them; a process without
them is a job of one rank. Knows nothing of models.
"""

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

from irpo_nemo.config import ParallelConfig
from irpo_nemo.errors import ConfigError
from irpo_nemo.training.cpu import enable_megatron_on_cpu

GROUP_TIMEOUT = timedelta(minutes=30)


def initialize_parallel(parallel: ParallelConfig, *, seed: int) -> None:
    """Join the job and build Megatron's groups. Doing it again with the same sizes changes nothing.

    Raises:
        ConfigError: The number of ranks is no multiple of the model-parallel size.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    enable_megatron_on_cpu()
    _join_process_group()
    if not parallel_state.is_initialized():
        _check_world_size(parallel)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=megatron_virtual_size(parallel),
            context_parallel_size=parallel.context_parallel_size,
        )
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        model_parallel_cuda_manual_seed(seed)


def megatron_virtual_size(parallel: ParallelConfig) -> int | None:
    """Virtual stages of each pipeline rank, as Megatron is told: None for one."""
    size = parallel.virtual_pipeline_model_parallel_size
    return size if size > 1 else None


def _join_process_group() -> None:
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        dist.init_process_group("nccl", timeout=GROUP_TIMEOUT, device_id=training_device())
    else:
        dist.init_process_group("gloo", timeout=GROUP_TIMEOUT)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _check_world_size(parallel: ParallelConfig) -> None:
    if dist.get_world_size() % parallel.ranks_per_replica:
        raise ConfigError(
            f"launcher.ranks: this job has {dist.get_world_size()} ranks, but tensor_model_parallel_size x "
            f"pipeline_model_parallel_size x context_parallel_size = {parallel.ranks_per_replica} must divide them"
        )


def shutdown_parallel() -> None:
    """Wait for every rank, then leave the job; a rank that leaves early would tear down gloo under the others."""
    from megatron.core import parallel_state

    dist.barrier()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def local_rank() -> int:
    """This process's place on its host."""
    return int(os.environ["LOCAL_RANK"])


def training_device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def is_rank_zero() -> bool:
    """Whether this rank writes files and the log."""
    return dist.get_rank() == 0


def data_parallel_rank() -> int:
    """Which share of each global batch this rank computes."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_rank()


def data_parallel_size() -> int:
    """How many ranks share a global batch."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_world_size()


def count_weight_copies() -> int:
    """How many ranks hold the same weights: those that share a global batch, and those that share its rows."""
    from megatron.core import parallel_state

    return data_parallel_size() * parallel_state.get_context_parallel_world_size()


def reports_losses() -> bool:
    """Whether this rank speaks for its model replica: last pipeline stage, first tensor- and context-parallel rank."""
    from megatron.core import parallel_state

    return (
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and is_first_context_rank()
    )


def is_first_context_rank() -> bool:
    """Whether this rank is the one of its context-parallel group that counts what all of them know."""
    from megatron.core import parallel_state

    return parallel_state.get_context_parallel_rank() == 0
