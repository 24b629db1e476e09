"""Lightning's side of Megatron: a strategy that lets Megatron own process groups, wrapping and gradients."""

import os
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from irpo_nemo.config import ParallelConfig
from irpo_nemo.training.parallel import data_parallel_rank, data_parallel_size, initialize_parallel, training_device


class MegatronStrategy(DDPStrategy):
    """Ranks come from the environment variables that torchrun and our launchers set; groups from Megatron.

    `IRPOModel` wraps itself in Megatron's DDP and steps Megatron's optimizer, so Lightning wraps, reduces and steps
    nothing.
    """

    def __init__(self, parallel: ParallelConfig, *, seed: int) -> None:
        super().__init__(cluster_environment=TorchElasticEnvironment())
        self.parallel = parallel
        self.seed = seed

    @property
    def root_device(self) -> torch.device:
        return training_device()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": data_parallel_size(), "rank": data_parallel_rank()}

    def setup_environment(self) -> None:
        """Join the job and build Megatron's groups."""
        initialize_parallel(self.parallel, seed=self.seed)
        super().setup_environment()

    def configure_ddp(self) -> None:
        """Nothing: `IRPOModel.configure_optimizers` wraps the chunks in Megatron's DDP."""

    def teardown(self) -> None:
        """Leave the groups up: the session exports after training and leaves them itself."""


def make_trainer(parallel: ParallelConfig, *, seed: int, callbacks: list[Any]) -> Trainer:
    """A Trainer without any of Lightning's own files, bars or checkpoints; ours are in `session` and `checkpoint`."""
    world_size, local_world_size = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=local_world_size,
        num_nodes=max(world_size // local_world_size, 1),
        strategy=MegatronStrategy(parallel, seed=seed),
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
