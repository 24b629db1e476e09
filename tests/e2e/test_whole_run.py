"""The loop from random weights to the report; then the same, killed everywhere."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from irpo_nemo.artifacts import hash_file, read_records
from irpo_nemo.records import PreferencePair
from irpo_nemo.run_folder import RunFolder
from tests.e2e.runs import TINY_RUN, finish_run, kill_when, results_without_times, start_run
from tests.tracking.curves import assert_trackers_hold_what_tensorboard_holds

TRACKERS = ("tracking.wandb.enabled=true", "tracking.wandb.mode=offline", "tracking.mlflow.enabled=true")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    finish_run(root, *TINY_RUN)
    return root


def test_a_run_leaves_what_the_readme_says(whole_run: Path) -> None:
    iteration = whole_run / "run" / "iteration_00"
    for path in ("samples/train", "samples/test", "graded/train", "graded/test", "evaluation.json", "pairs.parquet"):
        assert (iteration / path).exists(), path
    for path in ("pairs.json", "reference.parquet", "train/checkpoints", "train/metrics.jsonl", "hf/config.json"):
        assert (iteration / path).exists(), path
    assert (whole_run / "run" / "report" / "index.html").exists()
    assert [entry["iteration"] for entry in results_without_times(whole_run)["iterations"]] == [0, 1]


def test_the_first_step_has_a_dpo_loss_of_ln_2(whole_run: Path) -> None:
    first = json.loads((whole_run / "run/iteration_00/train/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss/dpo"] == pytest.approx(math.log(2), abs=1e-5)


def test_pairs_train_on_the_ids_that_were_sampled(whole_run: Path) -> None:
    pairs = read_records(whole_run / "run/iteration_00/pairs.parquet", PreferencePair)
    assert pairs
    assert all(pair.chosen_token_ids != pair.rejected_token_ids for pair in pairs)
    assert {pair.chosen_id.split("/")[1] for pair in pairs} <= {"gold", "sample"}


def test_a_second_run_says_that_everything_is_done_and_changes_nothing(whole_run: Path) -> None:
    def digests() -> dict[Path, str]:
        files = (path for path in (whole_run / "run").rglob("*") if path.is_file() and path.name != "run.lock")
        return {path: hash_file(path) for path in files}

    before = digests()
    assert "everything is done already" in finish_run(whole_run, *TINY_RUN)
    assert digests() == before


def test_a_run_killed_in_every_stage_ends_like_one_that_was_not(whole_run: Path, tmp_path: Path) -> None:
    """Twelve SIGKILLs to the launcher at seeded random moments, two of them while a checkpoint is being written."""
    random_delay = random.Random(20240430)
    run = tmp_path / "run"

    def appears(pattern: str) -> Callable[[], bool]:
        return lambda: any(run.glob(pattern))

    moments = [
        ("m0/prepare.started.json", 2.0),
        ("m0/sft.started.json", 6.0),
        ("m0/train/checkpoints/*.tmp", 0.02),
        ("m0/train/checkpoints/step_*4", 0.5),
        ("iteration_00/sample.started.json", 2.0),
        ("iteration_00/samples/train/part-*2.parquet", 0.2),
        ("iteration_00/grade.started.json", 1.0),
        ("iteration_00/pair.started.json", 1.0),
        ("iteration_00/train.started.json", 6.0),
        ("iteration_00/train/checkpoints/*.tmp", 0.02),
        ("iteration_00/train/checkpoints/step_*4", 0.5),
        ("iteration_01/sample.started.json", 4.0),
        ("iteration_01/grade.started.json", 1.0),
        ("report.started.json", 1.0),
    ]
    kills = 0
    for pattern, longest_delay in moments:
        process = start_run(tmp_path, *TINY_RUN, *TRACKERS)
        kills += kill_when(process, appears(pattern), delay_seconds=random_delay.uniform(0, longest_delay))
    finish_run(tmp_path, *TINY_RUN, *TRACKERS)

    assert kills >= 12
    assert results_without_times(tmp_path) == results_without_times(whole_run)
    for path in ("m0/hf/model.safetensors", "iteration_00/pairs.parquet", "iteration_00/hf/model.safetensors"):
        assert hash_file(run / path) == hash_file(whole_run / "run" / path), path
    assert_trackers_hold_what_tensorboard_holds(RunFolder(run))
