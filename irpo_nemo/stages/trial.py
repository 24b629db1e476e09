"""pairs ─► a trial: M_t trained without some problems, and kept every so many steps. Runs on every rank."""

from irpo_nemo.config import IRPOConfig
from irpo_nemo.pipeline import model_of
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.selection import split_problems
from irpo_nemo.stages.frame import StageResult
from irpo_nemo.stages.train import as_stage_result
from irpo_nemo.tasks import load_task


def run(config: IRPOConfig, iteration: int | None) -> StageResult:
    """Train M_t on the pairs of all but the held-out problems."""
    from irpo_nemo.training.trial import run_trial

    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    learned, held_out = split_problems(config, load_task(config))
    outcome = run_trial(
        config,
        iteration=iteration,
        model=model_of(config, iteration),
        pairs=folder.pairs,
        reference=folder.reference,
        learned={problem.problem_id for problem in learned},
        held_out={problem.problem_id for problem in held_out},
        folder=folder.trial,
    )
    return as_stage_result(outcome)
