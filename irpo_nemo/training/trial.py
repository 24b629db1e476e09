"""The trial: a training without some problems, whose model is kept every so many steps (see `irpo_nemo.selection`).

The loss on the pairs of those problems is measured at the same steps. It knows nothing of how the kept models are
judged, and leaves behind the reference log-probs of all pairs, which the training proper uses again.
"""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from irpo_nemo.artifacts import hash_file, hash_model_folder, read_json, read_records, write_json
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import DataError
from irpo_nemo.records import PreferencePair
from irpo_nemo.run_folder import TrialFolder
from irpo_nemo.training.batches import (
    Example,
    MicroBatch,
    batch_options,
    examples_of_pairs,
    make_micro_batches,
    make_units,
    plan_micro_batches,
)
from irpo_nemo.training.model import IRPOModel
from irpo_nemo.training.parallel import data_parallel_rank, data_parallel_size, is_rank_zero, shutdown_parallel
from irpo_nemo.training.reference import reference_logprobs
from irpo_nemo.training.session import VALIDATION_LOSS, TrainingOutcome, fit, load_policy, replace_export


def run_trial(
    config: IRPOConfig,
    *,
    iteration: int,
    model: Path,
    pairs: Path,
    reference: Path,
    learned: Container[str],
    held_out: Container[str],
    folder: TrialFolder,
) -> TrainingOutcome:
    """Train M_t on the pairs of the problems in `learned`, measure on those of `held_out`. Every rank calls this.

    Args:
        config: The run's configuration.
        iteration: t.
        model: Hugging Face folder of M_t.
        pairs: Parquet of `PreferencePair`, of all problems.
        reference: Parquet of `ReferenceLogprob`; written here, or reused when it covers the pairs under M_t.
        learned: Problem ids.
        held_out: Problem ids.
        folder: Where everything else goes.

    Raises:
        DataError: There are no pairs to learn from.
    """
    outcome = TrainingOutcome()
    all_pairs = read_records(pairs, PreferencePair)
    to_learn = [pair for pair in all_pairs if pair.problem_id in learned]
    to_measure = [pair for pair in all_pairs if pair.problem_id in held_out]
    if not to_learn:
        raise DataError(
            f"{pairs}: holds {len(all_pairs)} pairs, but none of the problems that the trial of iteration {iteration} "
            "may learn from. Lower selection.num_problems."
        )
    with outcome.timed("load"):
        policy = load_policy(config, config.training, model, num_examples=len(to_learn))
    with outcome.timed("reference"):
        references = reference_logprobs(policy, all_pairs, reference, model_hash=hash_model_folder(model))
    with outcome.timed("train"):
        keep_models = KeepModels(
            folder,
            every_steps=config.selection.every_steps,
            held_out=_micro_batches(examples_of_pairs(to_measure, references), policy),
        )
        fit(
            policy,
            examples_of_pairs(to_learn, references),
            folder.train,
            data_digest=hash_file(pairs),
            title=f"iteration {iteration}  trial",
            outcome=outcome,
            callbacks=[keep_models],
        )
    outcome.counts |= {"held_out_examples": len(to_measure), "models": len(read_json(folder.steps))}
    shutdown_parallel()
    return outcome


class KeepModels(Callback):
    """Exports the model every so many steps and after the last, and notes the step and its validation loss.

    That happens before the step's checkpoint, so a run that continues from there finds every model before it.
    """

    def __init__(self, folder: TrialFolder, *, every_steps: int, held_out: Sequence[MicroBatch]) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.held_out = held_out

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        module: IRPOModel,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        if module.step % self.every_steps and module.step != module.options.num_steps:
            return
        loss = module.validation_loss(self.held_out) if self.held_out else None
        if loss is not None:
            module.last_metrics[VALIDATION_LOSS] = loss
        replace_export(module, self.folder.model(module.step))
        if is_rank_zero():
            self._note(module.step, loss)

    def _note(self, step: int, loss: float | None) -> None:
        known = read_json(self.folder.steps) if self.folder.steps.exists() else []
        earlier = [entry for entry in known if entry["step"] < step]
        write_json(self.folder.steps, [*earlier, {"step": step, "validation_loss": loss}])


def _micro_batches(examples: Sequence[Example], policy: IRPOModel) -> list[MicroBatch]:
    """This data-parallel rank's share of the examples as one global batch; none when there are no examples."""
    if not examples:
        return []
    options = batch_options(policy.options.training, policy.options.parallel)
    plan = plan_micro_batches(make_units(examples, options), ranks=data_parallel_size(), options=options)
    return make_micro_batches(plan[data_parallel_rank()], options)
