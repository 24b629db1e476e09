"""A run that chooses its number of steps on held-out problems, and the same run killed in the stages that do so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.artifacts import hash_file, read_parts, read_records
from irpo_nemo.metrics import evaluate
from irpo_nemo.records import GradedCandidate, PreferencePair
from irpo_nemo.run_folder import IterationFolder
from tests.e2e.runs import TINY_RUN, finish_run, kill_when, results_without_times, start_run

pytestmark = pytest.mark.slow

OPTIONS = (
    *TINY_RUN,
    "evaluation.num_samples=0",
    "training.max_steps=null",
    "training.optimizer.warmup_steps=0",
    "selection.enabled=true",
    "selection.num_problems=6",
    "selection.every_steps=1",
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("selection")
    finish_run(root, *OPTIONS)
    return root


def iteration_of(root: Path) -> IterationFolder:
    return IterationFolder(root / "run" / "iteration_00")


def counts_of(root: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads(iteration_of(root).manifest(stage).read_text())["counts"])


def test_the_chosen_step_is_that_of_the_best_accuracy_on_the_held_out_problems(whole_run: Path) -> None:
    folder = iteration_of(whole_run)
    selection = json.loads(folder.selection.read_text())
    trial = counts_of(whole_run, "trial")
    assert [tried["step"] for tried in selection["tried"]] == list(range(1, trial["steps"] + 1))
    accuracies = []
    for tried in selection["tried"]:
        grades = list(read_parts(folder.trial.graded(tried["step"]), GradedCandidate))
        assert len(grades) == 6 == selection["num_problems"]
        assert tried["accuracy"] == evaluate(grades).accuracy
        accuracies.append(tried["accuracy"])
    assert selection["chosen_step"] == 1 + accuracies.index(max(accuracies))
    assert results_without_times(whole_run)["iterations"][0]["selection"] == selection


def test_the_trial_learns_from_no_held_out_problem_and_training_from_all_pairs(whole_run: Path) -> None:
    folder = iteration_of(whole_run)
    grades = list(read_parts(folder.trial.graded(1), GradedCandidate))
    pairs = read_records(folder.pairs, PreferencePair)
    held_out = {grade.problem_id for grade in grades}
    assert counts_of(whole_run, "trial")["examples"] == sum(pair.problem_id not in held_out for pair in pairs)
    assert counts_of(whole_run, "trial")["held_out_examples"] == sum(pair.problem_id in held_out for pair in pairs) > 0
    assert counts_of(whole_run, "train")["examples"] == len(pairs)


def test_training_takes_the_chosen_number_of_steps(whole_run: Path) -> None:
    folder = iteration_of(whole_run)
    chosen = json.loads(folder.selection.read_text())["chosen_step"]
    lines = folder.train.metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(chosen))
    assert counts_of(whole_run, "train")["steps"] == chosen


def test_a_run_killed_while_it_selects_ends_like_one_that_was_not(whole_run: Path, tmp_path: Path) -> None:
    """From the same pairs: what comes after them is taken away first."""
    shutil.copytree(whole_run / "run", tmp_path / "run", symlinks=True)
    folder = iteration_of(tmp_path)
    for path in [*folder.root.glob("*.manifest.json"), *folder.root.glob("*.started.json")]:
        if path.name.split(".")[0] in ("trial", "select", "train"):
            path.unlink()
    for path in (
        folder.trial.root,
        folder.train.root,
        folder.hf,
        tmp_path / "run/iteration_01",
        tmp_path / "run/report",
    ):
        shutil.rmtree(path)
    folder.selection.unlink()
    folder.reference.unlink()

    def appears(pattern: str) -> Callable[[], bool]:
        return lambda: any(folder.root.glob(pattern))

    moments = [
        ("trial/models/step_00000002", 0.0),
        ("trial/samples/step_00000002/part-00000.parquet", 0.0),
        ("selection.json", 0.0),
        ("train/metrics.jsonl", 0.0),
    ]
    kills = 0
    for pattern, delay_seconds in moments:
        process = start_run(tmp_path, *OPTIONS)
        kills += kill_when(process, appears(pattern), delay_seconds=delay_seconds)
    finish_run(tmp_path, *OPTIONS)

    assert kills == len(moments)
    assert results_without_times(tmp_path) == results_without_times(whole_run)
    assert hash_file(folder.hf / "model.safetensors") == hash_file(iteration_of(whole_run).hf / "model.safetensors")
