"""One training job from start to finish, on every rank: load, score the reference, train, export.

`train_sft` makes M_0 from demonstrations; `train_irpo` makes M_t+1 from pairs. Both continue from the newest checkpoint
they find, and give the same weights as if they had never been interrupted.
"""

import dataclasses
import gc
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from irpo_nemo.artifacts import hash_file, hash_model_folder, read_records
from irpo_nemo.config import IRPOConfig, SFTConfig, TrainingConfig
from irpo_nemo.errors import DataError
from irpo_nemo.records import Demonstration, PreferencePair
from irpo_nemo.run_folder import TrainFolder
from irpo_nemo.supervision import beat
from irpo_nemo.training.batches import (
    Completion,
    Example,
    GlobalBatches,
    batch_options,
    count_steps,
    examples_of_demonstrations,
    examples_of_pairs,
)
from irpo_nemo.training.checkpoint import Checkpoints
from irpo_nemo.training.interruption import Interruption
from irpo_nemo.training.model import IRPOModel, IRPOModelConfig
from irpo_nemo.training.parallel import data_parallel_rank, data_parallel_size, is_rank_zero, shutdown_parallel
from irpo_nemo.training.reference import reference_logprobs, score_completions
from irpo_nemo.training.step_log import LogSteps, StepLog
from irpo_nemo.training.strategy import make_trainer

logger = logging.getLogger(__name__)

VALIDATION_LOSS = "validation/loss"
"""The metric under which a callback leaves what it measured on held-out examples."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How long to train, where epochs and max_steps do not say it."""

    count: int
    """Optimizer steps to take."""
    schedule: int
    """Steps that the learning-rate schedule is made for."""


@dataclass(kw_only=True)
class TrainingOutcome:
    """What happened, for the manifest."""

    counts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by part: load, reference, train, export."""

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Record the wall time of the block under `part`."""
        started = time.monotonic()
        beat()
        yield
        self.seconds[part] = time.monotonic() - started


def train_sft(
    config: IRPOConfig, *, initial: Path, demonstrations: Path, folder: TrainFolder, export_to: Path
) -> TrainingOutcome:
    """Fine-tune `initial`, a Hugging Face folder, on demonstrations; export M_0. Every rank calls this."""
    outcome = TrainingOutcome()
    examples = examples_of_demonstrations(read_records(demonstrations, Demonstration))
    with outcome.timed("load"):
        policy = load_policy(config, config.sft, initial, num_examples=len(examples))
    with outcome.timed("train"):
        fit(
            policy,
            examples,
            folder,
            data_digest=hash_file(demonstrations),
            title="sft",
            outcome=outcome,
            watch=_watch_pairs(config.sft),
        )
    _finish(policy, export_to, outcome)
    return outcome


def _watch_pairs(sft: SFTConfig) -> Callable[[IRPOModel], dict[str, float]] | None:
    """What measures the mean log-prob of each side of the watched pairs, if there are any."""
    if sft.watched_pairs_path is None:
        return None
    path = Path(sft.watched_pairs_path)
    all_pairs = read_records(path, PreferencePair)
    if not all_pairs:
        raise DataError(f"sft.watched_pairs_path: {path} holds no pairs; name another, or leave it out")
    count = min(sft.num_watched_pairs, len(all_pairs))
    pairs = [all_pairs[place * len(all_pairs) // count] for place in range(count)]
    chosen = [Completion(prompt=tuple(p.prompt_token_ids), completion=tuple(p.chosen_token_ids)) for p in pairs]
    rejected = [Completion(prompt=tuple(p.prompt_token_ids), completion=tuple(p.rejected_token_ids)) for p in pairs]

    def watch(policy: IRPOModel) -> dict[str, float]:
        logprobs = score_completions(policy, [*chosen, *rejected])
        sides = {"chosen": logprobs[:count], "rejected": logprobs[count:]}
        return {f"watched/logprob/{side}": sum(values) / count for side, values in sides.items()}

    return watch


def train_irpo(
    config: IRPOConfig,
    *,
    iteration: int,
    model: Path,
    pairs: Path,
    reference: Path,
    folder: TrainFolder,
    export_to: Path,
    steps: Steps | None = None,
) -> TrainingOutcome:
    """Train M_t on its pairs with DPO + NLL and export M_t+1 to `export_to`. Every rank calls this.

    Args:
        config: The run's configuration.
        iteration: t.
        model: Hugging Face folder of M_t.
        pairs: Parquet of `PreferencePair`.
        reference: Parquet of `ReferenceLogprob`; written here, or reused when it covers the pairs under M_t.
        folder: Where checkpoints and metrics go.
        export_to: Where M_t+1 goes.
        steps: How long, when a trial has found it out.

    Raises:
        DataError: There are no pairs.
    """
    outcome = TrainingOutcome()
    preference_pairs = read_records(pairs, PreferencePair)
    if not preference_pairs:
        raise DataError(
            f"{pairs}: holds no pairs, so iteration {iteration} has nothing to learn from; pairs.json beside it says "
            "why. Sample more candidates (sampling.num_candidates) or at another sampling.temperature."
        )
    with outcome.timed("load"):
        policy = load_policy(config, config.training, model, num_examples=len(preference_pairs), steps=steps)
    with outcome.timed("reference"):
        references = reference_logprobs(policy, preference_pairs, reference, model_hash=hash_model_folder(model))
    with outcome.timed("train"):
        examples = examples_of_pairs(preference_pairs, references)
        fit(
            policy,
            examples,
            folder,
            data_digest=hash_file(pairs),
            title=f"iteration {iteration}  train",
            outcome=outcome,
        )
    _finish(policy, export_to, outcome)
    return outcome


def load_policy(
    config: IRPOConfig, training: TrainingConfig, hf_folder: Path, *, num_examples: int, steps: Steps | None = None
) -> IRPOModel:
    """Build the policy of this job on this rank, with the weights of `hf_folder`."""
    if steps is None:
        count = count_steps(
            num_examples, training.global_batch_size, num_epochs=training.num_epochs, max_steps=training.max_steps
        )
        steps = Steps(count=count, schedule=count)
    plain = TrainingConfig(**{f.name: getattr(training, f.name) for f in dataclasses.fields(TrainingConfig)})
    options = IRPOModelConfig(
        hf_folder=str(hf_folder),
        seed=config.seed,
        num_steps=steps.count,
        schedule_steps=steps.schedule,
        loss=config.loss,
        training=plain,
        parallel=config.parallel,
    )
    return IRPOModel(OmegaConf.structured(options))


def fit(
    policy: IRPOModel,
    examples: Sequence[Example],
    folder: TrainFolder,
    *,
    data_digest: str,
    title: str,
    outcome: TrainingOutcome,
    callbacks: Sequence[Callback] = (),
    watch: Callable[[IRPOModel], Mapping[str, float]] | None = None,
) -> None:
    """Train from `latest`, or from the start, to the last step, which always leaves a checkpoint.

    `callbacks` come to their turn after a step is logged and before its checkpoint; what `watch` measures, on every
    rank, is logged with the step.
    """
    training, num_steps = policy.options.training, policy.options.num_steps
    policy.prepare_for_training()
    checkpoints = Checkpoints(
        folder.checkpoints,
        data_digest=data_digest,
        keep=training.keep_checkpoints,
        in_background=training.async_checkpoints,
    )
    checkpoints.load_latest(policy)
    outcome.counts |= {"steps": num_steps, "examples": len(examples), "first_step": policy.step}
    if policy.step >= num_steps:
        return
    batches = GlobalBatches(
        examples,
        global_batch_size=training.global_batch_size,
        options=batch_options(training, policy.options.parallel),
        order=training.order,
        num_steps=num_steps,
        seed=policy.options.seed,
        rank=data_parallel_rank(),
        ranks=data_parallel_size(),
        first_step=policy.step,
    )
    has_pairs = examples[0].rejected is not None
    interruption = Interruption()
    log = StepLog(folder, first_step=policy.step, num_steps=num_steps, title=title) if is_rank_zero() else None
    trainer = make_trainer(
        policy.options.parallel,
        seed=policy.options.seed,
        callbacks=[
            LogSteps(log, check_first_step=has_pairs, watch=watch),
            *callbacks,
            SaveCheckpoints(checkpoints, interruption=interruption),
        ],
    )
    policy.set_trainer(trainer)
    gc.freeze()  # Megatron collects garbage at every checkpoint; what exists by now stays, so it need not be visited
    with interruption.watched():
        trainer.fit(policy, train_dataloaders=DataLoader(batches, batch_size=None, shuffle=False))
    if log is not None:
        log.close()


class SaveCheckpoints(Callback):
    """A checkpoint every so many steps, where a validation loss was measured, after the last step, and after a signal.

    The signal then ends the process.
    """

    def __init__(self, checkpoints: Checkpoints, *, interruption: Interruption) -> None:
        self.checkpoints = checkpoints
        self.interruption = interruption

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        module: IRPOModel,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        training = module.options.training
        beat()
        signum, is_last = self.interruption.agreed(), module.step == module.options.num_steps
        validation_loss = module.last_metrics.get(VALIDATION_LOSS)
        is_due = module.step % training.checkpoint_every_steps == 0 or validation_loss is not None
        if signum or is_last or is_due:
            self.checkpoints.save(module, validation_loss=validation_loss)
        if signum or is_last:
            self.checkpoints.wait()
        else:
            self.checkpoints.complete_if_written()
        if signum:
            if is_rank_zero():
                logger.info("%s: saved after step %d", signal.Signals(signum).name, module.step)
            raise SystemExit(128 + signum)


def _finish(policy: IRPOModel, export_to: Path, outcome: TrainingOutcome) -> None:
    with outcome.timed("export"):
        replace_export(policy, export_to)
    dist.barrier()
    shutdown_parallel()


def replace_export(policy: IRPOModel, folder: Path) -> None:
    """Export, whatever a start that ended too early has left in the place."""
    if is_rank_zero() and folder.exists():
        shutil.rmtree(folder)
    dist.barrier()
    policy.export(folder)
