"""demonstrations ─► M_0: supervised fine-tuning of the initial model. Runs on every rank."""

from irpo_nemo.config import IRPOConfig
from irpo_nemo.pipeline import initial_model_of
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.stages.frame import StageResult
from irpo_nemo.stages.train import as_stage_result


def run(config: IRPOConfig, iteration: int | None) -> StageResult:  # noqa: ARG001
    """Train on the demonstrations and export M_0."""
    from irpo_nemo.training.session import train_sft

    folder = RunFolder(config.run_folder).model_zero
    outcome = train_sft(
        config,
        initial=initial_model_of(config),
        demonstrations=folder.demonstrations,
        folder=folder.train,
        export_to=folder.hf,
    )
    return as_stage_result(outcome)
