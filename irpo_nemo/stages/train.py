"""pairs ─► M_t+1: reference log-probs of M_t, then DPO + NLL, then export. Runs on every rank."""

from typing import TYPE_CHECKING

from irpo_nemo.artifacts import read_json
from irpo_nemo.config import IRPOConfig
from irpo_nemo.pipeline import model_of
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.stages.frame import StageResult

if TYPE_CHECKING:
    from irpo_nemo.training.session import TrainingOutcome


def run(config: IRPOConfig, iteration: int | None) -> StageResult:
    """Train M_t on all its pairs, with selection for the number of steps that was chosen, and export M_t+1."""
    from irpo_nemo.training.session import Steps, train_irpo

    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    steps = None
    if config.selection.enabled:
        selection = read_json(folder.selection)
        steps = Steps(count=selection["chosen_step"], schedule=selection["trial_steps"])
    outcome = train_irpo(
        config,
        iteration=iteration,
        model=model_of(config, iteration),
        pairs=folder.pairs,
        reference=folder.reference,
        folder=folder.train,
        export_to=folder.hf,
        steps=steps,
    )
    return as_stage_result(outcome)


def as_stage_result(outcome: "TrainingOutcome") -> StageResult:
    """What a training run tells its manifest."""
    summary = [f"{outcome.counts['steps']} steps", f"{outcome.counts['examples']} examples"]
    return StageResult(counts={**outcome.counts, "summary": summary}, seconds=outcome.seconds)
