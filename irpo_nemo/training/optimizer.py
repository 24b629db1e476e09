"""Megatron's DistributedDataParallel, AdamW and learning-rate schedule, made from our configuration.

Gradients are summed, not averaged, over data-parallel ranks (`calculate_per_token_loss`); `finalize_model_grads` then
divides by the number of pairs that the loss function counted.
"""

from collections.abc import Sequence
from typing import Any

import torch

from irpo_nemo.config import OptimizerConfig, ParallelConfig, TrainingConfig
from irpo_nemo.errors import ConfigError


def wrap_in_ddp(
    chunks: list[torch.nn.Module], training: TrainingConfig, parallel: ParallelConfig
) -> list[torch.nn.Module]:
    """Give each chunk its gradient buffers, and the schedule its hooks."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

    overlap = _overlaps(parallel)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=training.use_distributed_optimizer,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and training.use_distributed_optimizer,
    )
    config: Any = chunks[0].config
    config.calculate_per_token_loss = True
    wrapped = [
        DistributedDataParallel(config=chunk.config, ddp_config=ddp_config, module=chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    config.finalize_model_grads_func = finalize_model_grads
    if overlap:
        config.no_sync_func = [chunk.no_sync for chunk in wrapped] if len(wrapped) > 1 else wrapped[0].no_sync
    return wrapped


def _overlaps(parallel: ParallelConfig) -> bool:
    return torch.cuda.is_available() if parallel.overlap_data_parallel is None else parallel.overlap_data_parallel


def gather_weights(wrapped: Sequence[Any]) -> None:
    """Bring the weights up to date on every rank, which overlap leaves to the next forward pass."""
    for chunk in wrapped:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def make_optimizer(wrapped: list[torch.nn.Module], training: TrainingConfig, parallel: ParallelConfig) -> Any:
    """Megatron's mixed-precision AdamW; its state sharded over data-parallel ranks when asked for."""
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer import get_megatron_optimizer

    options = training.optimizer
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=options.learning_rate,
            min_lr=options.min_learning_rate,
            weight_decay=options.weight_decay,
            adam_beta1=options.adam_beta1,
            adam_beta2=options.adam_beta2,
            adam_eps=options.adam_eps,
            clip_grad=options.clip_grad,
            bf16=training.bf16,
            params_dtype=torch.bfloat16 if training.bf16 else torch.float32,
            use_distributed_optimizer=training.use_distributed_optimizer,
            overlap_param_gather=_overlaps(parallel) and training.use_distributed_optimizer,
        ),
        wrapped,
    )


def make_scheduler(optimizer: Any, options: OptimizerConfig, num_steps: int) -> Any:
    """Linear warm-up from 0, which is the first step's rate, then constant or cosine, counted in optimizer steps.

    Raises:
        ConfigError: The warm-up is as long as the run.
    """
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    if options.warmup_steps >= num_steps:
        raise ConfigError(
            f"optimizer.warmup_steps: is {options.warmup_steps}, but this run has only {num_steps} steps; set fewer"
        )
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=options.learning_rate,
        min_lr=options.min_learning_rate,
        lr_warmup_steps=options.warmup_steps,
        lr_decay_steps=num_steps,
        lr_decay_style=options.schedule,
        start_wd=options.weight_decay,
        end_wd=options.weight_decay,
        wd_incr_steps=num_steps,
        wd_incr_style="constant",
    )
