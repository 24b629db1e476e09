"""What trackers hold of hand-made runs: training's own StepLog writes, kills are starts that begin again earlier."""

import builtins
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.artifacts import write_json
from irpo_nemo.cli import main
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import dump_config
from irpo_nemo.metrics import evaluate
from irpo_nemo.pipeline import plan
from irpo_nemo.records import GradedCandidate
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.tracking.follow import followed
from irpo_nemo.tracking.mirror import mirror
from irpo_nemo.tracking.points import read_points
from irpo_nemo.training.step_log import StepLog
from tests.test_config import mistakes_of
from tests.test_pipeline import finish, make_config, next_of, with_own_model
from tests.tracking.curves import (
    assert_trackers_hold_what_tensorboard_holds,
    mlflow_curves,
    mlflow_run,
    wandb_curves,
    wandb_records,
)

TRACKERS = ["tracking.wandb.enabled=true", "tracking.wandb.mode=offline", "tracking.mlflow.enabled=true"]


@pytest.fixture(autouse=True)
def no_settings_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> IRPOConfig:
    """A run of two iterations with both trackers."""
    config = make_config(tmp_path, *with_own_model(tmp_path), *TRACKERS, "tracking.every_seconds=0.05")
    folder = RunFolder(config.run_folder)
    folder.root.mkdir()
    folder.config.write_text(dump_config(config))
    return config


def train(config: IRPOConfig, steps: range, *, checkpoint: int | None = None, scale: float = 1.0) -> None:
    """Write what training writes in `steps`; the newest checkpoint covers the first `checkpoint` steps."""
    step = next_of(plan(config))
    assert step is not None
    assert step.iteration is not None
    folder = RunFolder(config.run_folder).iteration(step.iteration).train
    log = StepLog(folder, first_step=steps.start, num_steps=100, title="train")
    for number in steps:
        log.write({"step": number, "mfu": None, **metrics_of(number, scale * (1 + step.iteration))})
    log.close()
    if checkpoint is not None:
        (folder.checkpoints / f"step_{checkpoint:08d}").mkdir(parents=True)
        (folder.checkpoints / f"step_{checkpoint + 2:08d}.tmp").mkdir()


def metrics_of(step: int, scale: float) -> dict[str, float]:
    loss = scale / (step + 3)
    return {"loss/total": loss, "loss/dpo": loss / 3, "loss/nll": loss * 2 / 3, "pairs_per_second": scale * 7.1}


def do_until(config: IRPOConfig, title: str | None) -> None:
    """Finish step after step until `title` is next; each training takes 4 steps unless it has begun."""
    while (step := next_of(plan(config))) is not None and step.title != title:
        if step.stage == "train" and not (step.manifest.parent / "train").exists():
            train(config, range(4))
        finish(step)
        if step.stage == "grade":
            assert step.iteration is not None
            evaluation = RunFolder(config.run_folder).iteration(step.iteration).evaluation
            evaluation.rmdir()
            write_json(evaluation, evaluate(grades_of(step.iteration)).to_json())


def grades_of(iteration: int) -> Iterator[GradedCandidate]:
    for number in range(4):
        verdict = "correct" if number <= iteration else "wrong"
        yield GradedCandidate(
            candidate_id=f"{number}/greedy/0",
            problem_id=str(number),
            kind="greedy",
            index=0,
            gold_answer="4",
            answer="4",
            verdict=verdict,
            layer="numeric",
        )


def send(config: IRPOConfig) -> None:
    assert mirror(config, ended=lambda _: True, is_last=True)[1] == []


def test_trackers_hold_what_tensorboard_holds_after_a_kill_and_a_resume(config: IRPOConfig) -> None:
    do_until(config, "iteration 0 train")
    with followed(config, "train"):
        train(config, range(7), checkpoint=4)
    assert max(mlflow_curves(RunFolder(config.run_folder))["loss/total"]) == 3  # what the checkpoint covers
    with followed(config, "train"):
        train(config, range(4, 10), scale=1.5)
        do_until(config, "iteration 1 sample")
    do_until(config, "report")
    with followed(config, "report"):
        do_until(config, None)
    folder = RunFolder(config.run_folder)
    assert_trackers_hold_what_tensorboard_holds(folder)
    loss = mlflow_curves(folder)["loss/total"]
    assert list(loss) == list(range(14))
    assert [loss[3], loss[4], loss[10]] == [1 / 6, 1.5 / 7, 2 / 3]
    assert mlflow_curves(folder)["evaluation/accuracy"] == {0: 0.25, 1: 0.5, 2: 0.75}
    assert mlflow_run(folder)[1].info.status == "FINISHED"


def test_sending_again_changes_nothing(config: IRPOConfig) -> None:
    do_until(config, None)
    folder = RunFolder(config.run_folder)
    send(config)
    wandb, mlflow = wandb_curves(folder), mlflow_curves(folder)
    assert main(["track", str(config.run_folder)]) == 0
    assert (wandb_curves(folder), mlflow_curves(folder)) == (wandb, mlflow)
    client, run = mlflow_run(folder)
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_stage_done_again_begins_another_tracker_run(config: IRPOConfig) -> None:
    do_until(config, "iteration 1 sample")
    send(config)
    folder = RunFolder(config.run_folder)
    client, first = mlflow_run(folder)
    step = next(step for step in plan(config) if step.title == "iteration 0 train")
    step.manifest.unlink()
    train(config, range(3), scale=9.0)
    do_until(config, "iteration 1 sample")
    send(config)
    _, second = mlflow_run(folder)
    assert second.info.run_id != first.info.run_id
    assert len(client.get_metric_history(first.info.run_id, "loss/total")) == 4
    assert_trackers_hold_what_tensorboard_holds(folder)


def test_what_stands_behind_an_open_step_is_not_shown(config: IRPOConfig) -> None:
    do_until(config, None)
    everything = read_points(config)
    next(step for step in plan(config) if step.title == "iteration 0 grade").manifest.unlink()
    assert len(everything) == 2 * 4 + 3
    assert read_points(config) == []


def test_trackers_get_the_configuration_and_where_the_artifacts_are(config: IRPOConfig) -> None:
    do_until(config, None)
    send(config)
    folder = RunFolder(config.run_folder)
    _, run = mlflow_run(folder)
    assert run.data.params["loss.beta"] == "0.1"
    assert run.info.run_name == "quickstart"
    model = folder.iteration(0).manifest("train").resolve()
    assert run.data.tags["irpo.artifact.iteration_00/train.manifest.json.uri"] == model.as_uri()
    (path,) = folder.tracking.glob("wandb/offline-run-*/run-*.wandb")
    records = {record.WhichOneof("record_type"): record for record in wandb_records(path)}
    contents = {entry.path: entry.ref for entry in records["artifact"].artifact.manifest.contents}
    assert contents["iteration_00/train.manifest.json"] == model.as_uri()
    assert records["run"].run.display_name == "quickstart"
    assert any(item.key == "loss" and '"beta":0.1' in item.value_json for item in records["run"].run.config.update)


def test_a_missing_library_is_one_line_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find_other(name: str, *rest: Any) -> Any:
        return None if name in ("wandb", "mlflow") else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_other)
    assert mistakes_of(*TRACKERS) == [
        f"quickstart: tracking.{name}.enabled: is true, but {name} is not installed; "
        f"pip install 'irpo-nemo[{name}]', or set it to false"
        for name in ("wandb", "mlflow")
    ]


def test_a_tracker_that_fails_stops_nothing_and_the_other_goes_on(
    config: IRPOConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    (config.run_folder / "tracking").mkdir()
    (config.run_folder / "tracking" / "mlflow").write_text("a file where the store's folder should be")
    do_until(config, "report")
    with followed(config, "report"):
        do_until(config, None)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("MLflow: ")]
    assert len(lines) == 1
    assert lines[0].endswith(f"The next stage sends what is missing, or `irpo track {config.run_folder}`.")
    assert len(wandb_curves(RunFolder(config.run_folder))["loss/total"]) == 8


def test_without_trackers_nothing_is_started(config: IRPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.tracking.wandb.enabled = config.tracking.mlflow.enabled = False
    imported = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        assert name.split(".")[0] not in ("wandb", "mlflow")
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with followed(config, "train"):
        pass
    assert not (config.run_folder / "tracking").exists()


def test_a_run_without_a_tracker_says_how_to_name_one(config: IRPOConfig, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["tracking.wandb.enabled=false", "tracking.mlflow.enabled=false"]
    assert main(["track", str(config.run_folder), *overrides]) == 2
    assert capsys.readouterr().err == (
        f"{config.run_folder}: its configuration names no tracker; add tracking.wandb.enabled=true or "
        "tracking.mlflow.enabled=true to this command\n"
    )
