"""models of the trial ─► for how many steps to train: those of the model that solves most held-out problems."""

import dataclasses
import functools
import logging
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from irpo_nemo.artifacts import hash_model_folder, read_json, read_parts, write_json
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError
from irpo_nemo.grading.pool import GradingPool
from irpo_nemo.grading.self_test import check_grader
from irpo_nemo.metrics import evaluate
from irpo_nemo.pipeline import EVALUATION_SPLIT
from irpo_nemo.records import GradedCandidate, Problem
from irpo_nemo.run_folder import IterationFolder, RunFolder
from irpo_nemo.sampling import Sampler, open_sampler
from irpo_nemo.sampling.parts import sample_split
from irpo_nemo.selection import Selection, TriedModel, choose_step, split_problems
from irpo_nemo.stages.frame import StageResult
from irpo_nemo.stages.grade import grade_parts
from irpo_nemo.tasks import Task, load_task
from irpo_nemo.tokenization import load_tokenizer

logger = logging.getLogger(__name__)


def run(config: IRPOConfig, iteration: int | None) -> StageResult:
    """Let each model of the trial solve the held-out problems, write selection.json, and drop all but the best model.

    Raises:
        ArtifactError: A model of the trial is gone.
        MachineError: The grader fails its self-test, or cannot run here.
    """
    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    seconds: dict[str, float] = {}
    if not folder.selection.exists():
        task = load_task(config)
        _, held_out = split_problems(config, task)
        kept = read_json(folder.trial.steps)
        started = time.perf_counter()
        for entry in kept:
            _solve(config, task, held_out, folder, iteration=iteration, step=entry["step"])
        seconds["sample"] = time.perf_counter() - started
        selection = _measure(config, task, held_out, folder, kept)
        seconds["grade"] = time.perf_counter() - started - seconds["sample"]
        write_json(folder.selection, dataclasses.asdict(selection))
    found = read_json(folder.selection)
    _drop_others(folder, found["chosen_step"])
    return StageResult(counts={**found, "summary": _summarize(found)}, seconds=seconds)


def _solve(
    config: IRPOConfig, task: Task, problems: list[Problem], folder: IterationFolder, *, iteration: int, step: int
) -> None:
    """Draw the greedy completions of one kept model, or what is left of them."""
    model = folder.trial.model(step)
    if not model.exists():
        raise ArtifactError(
            f"{model}: is gone, so it cannot be measured. Delete {folder.manifest('trial')} to run the trial again."
        )
    greedy = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, num_samples=0))
    with ExitStack() as stack:

        @functools.cache
        def open_engine() -> Sampler:
            sampler = open_sampler(config, model)
            stack.callback(sampler.close)
            return sampler

        counts = sample_split(
            open_engine,
            load_tokenizer(model, trust_remote_code=config.model.trust_remote_code),
            task,
            greedy,
            iteration=iteration,
            split=EVALUATION_SPLIT,
            folder=folder.trial.samples(step),
            model_hash=hash_model_folder(model),
            problems=problems,
        )
    logger.info("iteration %d  select  step %d: %d completions", iteration, step, counts.completions)


def _measure(
    config: IRPOConfig, task: Task, problems: list[Problem], folder: IterationFolder, kept: list[dict[str, Any]]
) -> Selection:
    tried = []
    with GradingPool(task.grader, config.grading) as pool:
        check_grader(pool)
        for entry in kept:
            step = entry["step"]
            grade_parts(pool, problems, samples=folder.trial.samples(step), graded=folder.trial.graded(step))
            evaluation = evaluate(read_parts(folder.trial.graded(step), GradedCandidate))
            tried.append(
                TriedModel(
                    step=step,
                    accuracy=evaluation.accuracy,
                    accuracy_ci95=evaluation.accuracy_ci95,
                    validation_loss=entry["validation_loss"],
                )
            )
    return Selection(
        chosen_step=choose_step(tried), trial_steps=tried[-1].step, num_problems=len(problems), tried=tried
    )


def _drop_others(folder: IterationFolder, chosen_step: int) -> None:
    """A model takes as much disk as M_t; the chosen one stays, for comparison with M_t+1."""
    for path in _models(folder):
        if path != folder.trial.model(chosen_step):
            shutil.rmtree(path)


def _models(folder: IterationFolder) -> list[Path]:
    return sorted(folder.trial.models.iterdir()) if folder.trial.models.exists() else []


def _summarize(found: dict[str, Any]) -> list[str]:
    best = next(tried for tried in found["tried"] if tried["step"] == found["chosen_step"])
    return [
        f"{found['chosen_step']} of {found['trial_steps']} steps",
        f"{best['accuracy']:.1%} of {found['num_problems']} held-out problems",
    ]
