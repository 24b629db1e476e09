"""Plans are made from files alone: here, files that stand for finished stages."""

import json
from pathlib import Path

import pytest

from irpo_nemo.artifacts import Manifest, write_manifest
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import load_config
from irpo_nemo.errors import ArtifactError, ConfigError
from irpo_nemo.pipeline import Step, find_file_mistakes, find_step, model_of, plan, refuse_changes, splits_of

MODEL_CONFIG = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}

PINNED = [
    "num_iterations=2",
    "sft.max_steps=500",
    "sft.max_tokens_per_micro_batch=2000",
    "training.max_tokens_per_micro_batch=1000",
    "task.arithmetic.num_train_problems=400",
    "task.arithmetic.num_test_problems=400",
    "sampler.problems_per_part=128",
    "sampling.num_candidates=12",
    "evaluation.num_samples=8",
]
"""What these tests count on, whatever the quickstart is tuned to."""


def make_config(tmp_path: Path, *overrides: str) -> IRPOConfig:
    return load_config("quickstart", [f"run_root={tmp_path}", *PINNED, *overrides])


def with_own_model(tmp_path: Path) -> list[str]:
    """Overrides of a run that starts from a model folder and problem files of the user's."""
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG))
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    files = [f"task.{split}_path={tmp_path}/{split}.jsonl" for split in ("train", "test")]
    return ["task.name=jsonl", "sft.enabled=false", f"model.path={folder}", *files]


def finish(step: Step, *, content: str = "1") -> None:
    """Leave what the stage would leave."""
    assert step.inputs is not None
    for path in step.outputs:
        path.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        stage=step.stage,
        iteration=step.iteration,
        settings=json.loads(json.dumps(step.settings)),
        inputs=step.inputs,
        outputs={path.name: content for path in step.outputs},
        counts={},
        seconds={"total": 1.0},
    )
    write_manifest(step.manifest, manifest)


def finish_until(config: IRPOConfig, title: str | None = None) -> list[Step]:
    """Finish step after step, as a launcher would, until `title` is next; return the plan then."""
    while (steps := plan(config)) and (following := next_of(steps)) is not None and following.title != title:
        finish(following)
    return steps


def next_of(steps: list[Step]) -> Step | None:
    return next((step for step in steps if step.state != "done"), None)


def states(config: IRPOConfig) -> dict[str, str]:
    return {step.title: step.state for step in plan(config)}


def test_the_steps_of_a_run_in_order(tmp_path: Path) -> None:
    assert [step.title for step in plan(make_config(tmp_path, "num_iterations=1"))] == [
        "prepare",
        "sft",
        "iteration 0 sample",
        "iteration 0 grade",
        "iteration 0 pair",
        "iteration 0 train",
        "iteration 1 sample",
        "iteration 1 grade",
        "report",
    ]


def test_selection_puts_a_trial_before_training(tmp_path: Path) -> None:
    steps = plan(make_config(tmp_path, "num_iterations=1", "selection.enabled=true", "selection.num_problems=40"))
    assert [step.title for step in steps[4:8]] == [
        "iteration 0 pair",
        "iteration 0 trial",
        "iteration 0 select",
        "iteration 0 train",
    ]
    trial, select, train = steps[5:8]
    assert [path.name for path in train.outputs] == ["hf"], "the trial's reference log-probs are used again"
    assert [path.name for path in trial.outputs] == ["reference.parquet", "steps.json"]
    assert [path.name for path in select.outputs] == ["selection.json"]


def test_selection_settings_matter_only_when_it_is_on(tmp_path: Path) -> None:
    finish_until(make_config(tmp_path))
    assert set(states(make_config(tmp_path, "selection.every_steps=7")).values()) == {"done"}
    selecting = ["selection.enabled=true", "selection.num_problems=40"]
    assert states(make_config(tmp_path, *selecting))["iteration 0 trial"] == "ready"
    finish_until(make_config(tmp_path, *selecting))
    with pytest.raises(ConfigError, match=r"^selection\.every_steps: is 7, but iteration 0 trial in "):
        refuse_changes(changed := make_config(tmp_path, *selecting, "selection.every_steps=7"), plan(changed))


def test_more_held_out_problems_than_there_are_is_told_before_anything_runs() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [*PINNED, "selection.enabled=true"], also_check=find_file_mistakes)
    assert str(caught.value) == (
        "quickstart: selection.num_problems: is 1000, but there are only 400 training problems to take them from. "
        "Lower it."
    )


def test_without_fine_tuning_the_run_starts_with_sampling(tmp_path: Path) -> None:
    config = make_config(tmp_path, "num_iterations=0", *with_own_model(tmp_path))
    assert states(config) == {"iteration 0 sample": "ready", "iteration 0 grade": "waiting", "report": "waiting"}
    assert model_of(config, 0) == tmp_path / "model"


def test_m_t_is_what_iteration_t_minus_1_exported(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert model_of(config, 0) == tmp_path / "quickstart/m0/hf"
    assert model_of(config, 2) == tmp_path / "quickstart/iteration_01/hf"


def test_the_last_model_is_sampled_for_evaluation_only(tmp_path: Path) -> None:
    config = make_config(tmp_path, "num_iterations=2")
    assert [splits_of(config, t) for t in range(3)] == [("train", "test"), ("train", "test"), ("test",)]


def test_given_pairs_leave_m_0_nothing_to_draw_for_training(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").write_text("1")
    given = ["num_iterations=2", f"pairing.pairs_path={tmp_path}/pairs.parquet"]
    config = make_config(tmp_path, *given)
    assert [splits_of(config, t) for t in range(3)] == [("test",), ("train", "test"), ("test",)]
    finish_until(config)
    (tmp_path / "moved").mkdir()
    (tmp_path / "pairs.parquet").rename(tmp_path / "moved" / "pairs.parquet")
    config.pairing.pairs_path = f"{tmp_path}/moved/pairs.parquet"
    assert next_of(plan(config)) is None
    (tmp_path / "moved" / "pairs.parquet").write_text("2")
    with pytest.raises(ArtifactError, match="iteration 0 pair was made from another pairs file"):
        refuse_changes(config, plan(config))


def test_pairs_that_fine_tuning_watched_may_move_and_not_change(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").write_text("1")
    config = make_config(tmp_path, f"sft.watched_pairs_path={tmp_path}/pairs.parquet")
    finish_until(config)
    (tmp_path / "pairs.parquet").rename(tmp_path / "moved.parquet")
    config.sft.watched_pairs_path = f"{tmp_path}/moved.parquet"
    assert next_of(plan(config)) is None
    (tmp_path / "moved.parquet").write_text("2")
    with pytest.raises(ArtifactError, match="sft was made from another watched pairs"):
        refuse_changes(config, plan(config))


def test_a_step_waits_for_the_one_before(tmp_path: Path) -> None:
    steps = finish_until(make_config(tmp_path), "iteration 0 pair")
    assert [(step.state, step.reason) for step in steps[3:6]] == [
        ("done", ""),
        ("ready", ""),
        ("waiting", "after iteration 0 pair"),
    ]


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    finish_until(config)
    assert set(states(config).values()) == {"done"}


def test_only_training_takes_ranks(tmp_path: Path) -> None:
    steps = plan(make_config(tmp_path, "launcher.ranks=4"))
    assert {step.stage: step.ranks for step in steps if step.ranks > 1} == {"sft": 4, "train": 4}


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("loss.beta=0.2", "iteration 0 train"),
        ("training.optimizer.learning_rate=1e-6", "iteration 0 train"),
        ("parallel.tensor_model_parallel_size=1", "sft"),
        ("pairing.cap=losers", "iteration 0 pair"),
        ("pairing.gold_solutions=true", "iteration 0 sample"),
        ("sampling.num_candidates=13", "iteration 0 sample"),
        ("evaluation.num_samples=9", "iteration 0 sample"),
        ("sampling.temperature=[0.8,1.3]", "iteration 1 sample"),
        ("sft.max_steps=450", "sft"),
        ("model.num_layers=6", "prepare"),
        ("seed=1", "prepare"),
    ],
)
def test_a_changed_setting_makes_stale_what_depends_on_it(tmp_path: Path, override: str, stale: str) -> None:
    finish_until(make_config(tmp_path))
    following = next_of(plan(make_config(tmp_path, override)))
    assert following is not None
    assert (following.title, following.state) == (stale, "stale")


@pytest.mark.parametrize(
    "override",
    [
        "launcher.threads_per_rank=2",
        "training.keep_checkpoints=9",
        "training.checkpoint_every_steps=9",
        "sft.checkpoint_every_steps=9",
        "sft.keep_checkpoints=9",
    ],
)
def test_what_changes_no_result_is_free_to_change(tmp_path: Path, override: str) -> None:
    finish_until(make_config(tmp_path))
    config = make_config(tmp_path, override)
    assert next_of(plan(config)) is None


def test_another_configuration_is_refused_with_every_key(tmp_path: Path) -> None:
    finish_until(make_config(tmp_path))
    config = make_config(tmp_path, "loss.beta=0.2", "sampling.temperature=[0.8,1.3]")
    with pytest.raises(ConfigError) as caught:
        refuse_changes(config, plan(config))
    assert str(caught.value).splitlines() == [
        f"loss.beta: is 0.2, but iteration 0 train in {tmp_path}/quickstart was made with loss.beta=0.1. "
        f"Set loss.beta=0.1, or start another run with name=...",
    ]
    config = make_config(tmp_path, "loss.beta=0.2", "loss.nll_weight=0.5", "seed=2")
    with pytest.raises(ConfigError) as caught:
        refuse_changes(config, plan(config))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["seed"]


def test_a_setting_may_change_before_anything_depends_on_it(tmp_path: Path) -> None:
    finish_until(make_config(tmp_path), "iteration 0 train")
    config = make_config(tmp_path, "loss.beta=0.2")
    steps = plan(config)
    refuse_changes(config, steps)
    following = next_of(steps)
    assert following is not None
    assert (following.title, following.state) == ("iteration 0 train", "ready")


def test_more_iterations_continue_the_run(tmp_path: Path) -> None:
    finish_until(make_config(tmp_path, "num_iterations=1"))
    config = make_config(tmp_path, "num_iterations=2")
    steps = plan(config)
    refuse_changes(config, steps)
    following = next_of(steps)
    assert following is not None
    assert (following.title, following.reason) == ("iteration 1 sample", "iteration_01/samples/train is missing")


def test_a_changed_problem_file_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, "num_iterations=0", *with_own_model(tmp_path))
    finish_until(config)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('{"question": "3 + 3?", "answer": "6"}\n')
    steps = plan(config)
    with pytest.raises(ArtifactError) as caught:
        refuse_changes(config, steps)
    assert str(caught.value) == (
        f"{tmp_path}/quickstart/iteration_00/sample.manifest.json: iteration 0 sample was made from another "
        "problem file 2 (test.jsonl). Put the old one back, start another run with name=..., or delete this file "
        "to redo the step."
    )


def test_moved_problem_files_are_the_same_ones(tmp_path: Path) -> None:
    finish_until(make_config(tmp_path, "num_iterations=0", *with_own_model(tmp_path)))
    (tmp_path / "moved").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").rename(tmp_path / "moved" / f"{split}.jsonl")
    model = ["task.name=jsonl", "sft.enabled=false", f"model.path={tmp_path}/model"]
    files = [f"task.{split}_path={tmp_path}/moved/{split}.jsonl" for split in ("train", "test")]
    assert next_of(plan(make_config(tmp_path, "num_iterations=0", *model, *files))) is None


def test_another_model_folder_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, "num_iterations=0", *with_own_model(tmp_path))
    finish_until(config)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match="was made from another model folder"):
        refuse_changes(config, plan(config))


def test_a_step_redone_with_another_result_makes_later_ones_stale(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    finish_until(config)
    sft = find_step(config, "sft", None)
    sft.manifest.unlink()
    finish(find_step(config, "sft", None), content="2")
    steps = plan(config)
    refuse_changes(config, steps)
    following = next_of(steps)
    assert following is not None
    assert (following.title, following.state, following.reason) == ("iteration 0 sample", "stale", "sft changed")


def test_a_step_redone_with_the_same_result_leaves_later_ones_done(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    finish_until(config)
    find_step(config, "sft", None).manifest.unlink()
    finish(find_step(config, "sft", None))
    assert next_of(plan(config)) is None


def test_a_deleted_output_is_made_again(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    finish_until(config)
    (tmp_path / "quickstart/iteration_00/hf").rmdir()
    following = next_of(plan(config))
    assert following is not None
    assert (following.title, following.reason) == ("iteration 0 train", "iteration_00/hf is missing")


def test_a_step_that_the_run_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^train iteration=5: this run has no such step\. It has: prepare, sft, "):
        find_step(make_config(tmp_path), "train", 5)
