"""`IRPOModel`: the policy as a NeMo model. A Megatron-core GPTModel inside, DPO + NLL or plain NLL outside.

One Lightning batch is one global batch: this data-parallel rank's micro batches, which Megatron's schedule runs forward
and backward with tensor and pipeline parallel. The loss function hands the schedule (sum over pairs, number of pairs),
and Megatron divides by the pairs of the global batch after reducing gradients over all ranks; so the result is the
exact mean whatever the layout. Plain supervised fine-tuning counts completion tokens instead of pairs, as is custom.

Shapes: as in `batches` and `loss`. The module works without a Trainer, for loading, log-probs and export.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from nemo.core import ModelPT
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from irpo_nemo.config import LossConfig, ParallelConfig, TrainingConfig
from irpo_nemo.training.batches import MicroBatch
from irpo_nemo.training.families.weights import export_hf
from irpo_nemo.training.gpt import build_gpt_model
from irpo_nemo.training.logprobs import sum_by_completion
from irpo_nemo.training.loss import pair_losses
from irpo_nemo.training.parallel import initialize_parallel, is_first_context_rank, reports_losses, training_device
from irpo_nemo.training.transformer_engine import require_transformer_engine

METRIC_NAMES = (
    "loss/total",
    "loss/dpo",
    "loss/nll",
    "reward/chosen",
    "reward/rejected",
    "reward/margin",
    "reward/accuracy",
    "logprob/chosen",
    "logprob/rejected",
    "tokens/chosen",
    "tokens/rejected",
)
"""What the loss function sums over pairs, in this order; rejected ones stay 0 without a rejected side."""


@dataclasses.dataclass(kw_only=True)
class IRPOModelConfig:
    """`cfg` of `IRPOModel`."""

    hf_folder: str
    """Where the weights, their shape and the tokenizer come from."""
    seed: int
    num_steps: int
    """Optimizer steps of the whole run."""
    schedule_steps: int
    """Steps that the learning-rate schedule is made for; more than num_steps where a trial ended earlier."""
    loss: LossConfig
    training: TrainingConfig
    parallel: ParallelConfig


class IRPOModel(ModelPT):
    """A policy that Megatron-core splits over the ranks of this job.

    Args:
        cfg: An `IRPOModelConfig` as OmegaConf.
        trainer: Lightning's Trainer; None to load, score or export only.
    """

    def __init__(self, cfg: DictConfig, trainer: Trainer | None = None) -> None:
        super().__init__(cfg=cfg, trainer=trainer)
        self.automatic_optimization = False
        self.options = read_options(cfg)
        require_transformer_engine(self.options.training)
        initialize_parallel(self.options.parallel, seed=self.options.seed)
        self.chunks = torch.nn.ModuleList(
            build_gpt_model(
                Path(self.options.hf_folder),
                parallel=self.options.parallel,
                bf16=self.options.training.bf16,
                fp8=self.options.training.fp8,
                attention=self.options.training.attention,
                recompute_activations=self.options.training.recompute_activations,
            )
        )
        self.step = 0
        """Optimizer steps taken, over all resumptions."""
        self.megatron_optimizer: Any = None
        self.megatron_scheduler: Any = None
        self.last_metrics: dict[str, float] = {}
        self._wrapped: list[Any] = []

    @classmethod
    def list_available_models(cls) -> None:
        """There are no pre-trained models to download."""

    def setup_training_data(self, train_data_config: DictConfig) -> None:
        """Data comes from the session, through Trainer.fit."""

    def setup_validation_data(self, val_data_config: DictConfig) -> None:
        """Evaluation is a stage of its own."""

    def configure_optimizers(self) -> None:
        """Build Megatron's DDP, optimizer and schedule; Lightning gets none, since Megatron's is no torch optimizer."""
        if self.megatron_optimizer is None:
            self.prepare_for_training()

    def prepare_for_training(self) -> None:
        """Wrap the chunks in Megatron's DistributedDataParallel and make the optimizer and its schedule."""
        from irpo_nemo.training.optimizer import make_optimizer, make_scheduler, wrap_in_ddp

        self._wrapped = wrap_in_ddp(list(self.chunks), self.options.training, self.options.parallel)
        self.megatron_optimizer = make_optimizer(self._wrapped, self.options.training, self.options.parallel)
        self.megatron_scheduler = make_scheduler(
            self.megatron_optimizer, self.options.training.optimizer, self.options.schedule_steps
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Leave the batch on the CPU; micro batches move one at a time."""
        return batch

    def training_step(self, batch: list[MicroBatch], batch_idx: int) -> None:  # noqa: ARG002
        """Take one optimizer step on one global batch; its metrics end in `last_metrics`."""
        self.last_metrics = self.forward_backward(batch)
        learning_rate = self.megatron_optimizer.param_groups[0]["lr"]
        _, grad_norm, _ = self.megatron_optimizer.step()
        self.megatron_scheduler.step(increment=1)
        self.last_metrics |= {"grad_norm": float(grad_norm), "learning_rate": float(learning_rate)}
        self.step += 1

    def forward_backward(self, batch: Sequence[MicroBatch]) -> dict[str, float]:
        """Accumulate the gradient of the global batch's mean loss; return its metrics on every rank."""
        for chunk in self._wrapped:
            chunk.zero_grad_buffer()
        self.megatron_optimizer.zero_grad()
        outputs = self._run_schedule(self._wrapped, batch, self._loss, forward_only=False)
        return _reduce_metrics(outputs)

    @torch.no_grad()
    def completion_logprobs(self, batch: Sequence[MicroBatch]) -> list[Tensor] | None:
        """Score completions without gradients.

        Returns:
            Summed log-probs of each micro batch's completions, [completions] fp32, where `reports_losses`; None
            elsewhere.
        """
        outputs = self._run_schedule(list(self.chunks), batch, _scores, forward_only=True)
        return [output["logprobs"] for output in outputs] if reports_losses() else None

    @torch.no_grad()
    def validation_loss(self, batch: Sequence[MicroBatch]) -> float:
        """The mean loss of one global batch, on every rank, without a gradient."""
        outputs = self._run_schedule(list(self.chunks), batch, self._loss, forward_only=True)
        return _reduce_metrics(outputs)["loss/total"]

    def gather_weights(self) -> None:
        """Bring the weights up to date on every rank before they are read other than by a forward pass."""
        from irpo_nemo.training.optimizer import gather_weights

        gather_weights(self._wrapped)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder with the tokenizer of the one the weights came from. Every rank calls this."""
        self.gather_weights()
        export_hf(list(self.chunks), source_folder=Path(self.options.hf_folder), target_folder=folder)

    def _run_schedule(
        self,
        chunks: list[torch.nn.Module],
        batch: Sequence[MicroBatch],
        finish: Callable[..., Any],
        *,
        forward_only: bool,
    ) -> list[dict[str, Tensor]]:
        from megatron.core.pipeline_parallel import get_forward_backward_func

        return get_forward_backward_func()(
            forward_step_func=partial(_forward_step, finish=finish),
            data_iterator=[iter(batch) for _ in chunks] if len(chunks) > 1 else iter(batch),
            model=chunks,
            num_microbatches=len(batch),
            seq_length=batch[0].tokens.shape[1],
            micro_batch_size=batch[0].tokens.shape[0],
            forward_only=forward_only,
        )

    def _loss(self, batch: MicroBatch, sums: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Megatron's loss contract: (sum over units, number of units, sums of metrics).

        Units are what the global batch's mean is over: pairs, or the completion tokens of demonstrations. Each rank of
        a context-parallel group knows the whole loss, and has the gradient that comes through its own slots; so
        Megatron sums gradients over the group, and one rank of it counts.
        """
        if batch.rejected is not None:
            metrics, loss = self._pair_metrics(batch, sums, batch.rejected)
            units = batch.weights
        else:
            counts = batch.completion_lengths[batch.chosen]
            metrics, loss = _demonstration_metrics(sums[batch.chosen], counts)
            units = batch.weights * counts
        weighted = (metrics * batch.weights).sum(dim=1)
        totals = torch.stack([units.sum(), batch.weights.sum()])
        return (
            (loss * batch.weights).sum(),
            totals[0].to(torch.int) * is_first_context_rank(),
            {"sums": torch.cat([weighted, totals]).detach().double()},
        )

    def _pair_metrics(self, batch: MicroBatch, sums: Tensor, rejected_indices: Tensor) -> tuple[Tensor, Tensor]:
        """[len(METRIC_NAMES), pairs] and the loss, [pairs]."""
        chosen, rejected = sums[batch.chosen], sums[rejected_indices]
        chosen_tokens, rejected_tokens = (
            batch.completion_lengths[indices] for indices in (batch.chosen, rejected_indices)
        )
        loss = self.options.loss
        losses = pair_losses(
            chosen,
            rejected,
            batch.reference_logprobs[0],
            batch.reference_logprobs[1],
            chosen_tokens,
            beta=loss.beta,
            dpo_weight=loss.dpo_weight,
            nll_weight=loss.nll_weight,
        )
        margin = losses.reward_chosen - losses.reward_rejected
        rows = (
            losses.total,
            losses.dpo,
            losses.nll,
            losses.reward_chosen,
            losses.reward_rejected,
            margin,
            (margin > 0).float(),
            chosen,
            rejected,
            chosen_tokens.float(),
            rejected_tokens.float(),
        )
        return torch.stack([row.detach() for row in rows]), losses.total


def read_options(cfg: DictConfig) -> IRPOModelConfig:
    """`cfg` as a dataclass, without the keys that NeMo adds to it."""
    names = [field.name for field in dataclasses.fields(IRPOModelConfig)]
    merged = OmegaConf.merge(OmegaConf.structured(IRPOModelConfig), OmegaConf.masked_copy(cfg, names))
    return cast(IRPOModelConfig, OmegaConf.to_object(merged))


def _forward_step(
    data: Iterator[MicroBatch], model: torch.nn.Module, *, finish: Callable[..., Any]
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Megatron's forward-step contract: the chunk's output, and what turns the last stage's output into a loss."""
    batch = next(data).to(training_device())
    output = model(input_ids=batch.tokens, position_ids=batch.position_ids, attention_mask=None, layout=batch.layout)
    return output, partial(_finish, batch=batch, finish=finish)


def _finish(logprobs: Tensor, *, batch: MicroBatch, finish: Callable[..., Any]) -> Any:
    """Sum each completion's log-probs and hand them on. `logprobs`: [tokens]."""
    return finish(batch, sum_by_completion(logprobs, batch.completion_lengths))


def _scores(batch: MicroBatch, sums: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # noqa: ARG001
    return sums.sum(), torch.ones((), dtype=torch.int, device=sums.device), {"logprobs": sums.clone()}


def _demonstration_metrics(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """[len(METRIC_NAMES), demonstrations] and the loss summed over tokens, [demonstrations]."""
    nll = -sums
    values = {"loss/total": nll, "loss/nll": nll, "logprob/chosen": sums, "tokens/chosen": counts.float()}
    zero = torch.zeros_like(nll)
    return torch.stack([values.get(name, zero).detach() for name in METRIC_NAMES]), nll


def _reduce_metrics(outputs: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of every metric over the global batch: losses over its units, the rest over its examples.

    All-reduces once over all ranks.
    """
    total = torch.zeros(len(METRIC_NAMES) + 2, dtype=torch.float64, device=training_device())
    if reports_losses():
        total += torch.stack([output["sums"] for output in outputs]).sum(dim=0)
    dist.all_reduce(total)
    *sums, num_units, num_examples = total.tolist()
    metrics = {
        name: value / (num_units if name.startswith("loss/") else num_examples)
        for name, value in zip(METRIC_NAMES, sums, strict=True)
    }
    metrics["num_pairs"] = num_examples
    return metrics
