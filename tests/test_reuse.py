"""A step of one run becomes the same step of another. Grading and pairing are real here; earlier steps are files."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from irpo_nemo import reuse
from irpo_nemo.artifacts import Manifest, read_json, read_manifest, write_json, write_manifest
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import dump_config, load_config
from irpo_nemo.launch.display import summarize
from irpo_nemo.pipeline import find_step
from irpo_nemo.reuse import find_twin, is_taken_over
from irpo_nemo.run_folder import IterationFolder, RunFolder
from irpo_nemo.sampling.parts import Shard
from irpo_nemo.stages.frame import run_shard, run_stage
from tests.stages.test_stages import write_samples
from tests.test_pipeline import finish, finish_until, with_own_model

PROBLEMS = '{"question": "Number 4?", "answer": "4"}\n{"question": "Number 5?", "answer": "5"}\n' + (
    '{"question": "Number 6?", "answer": "6"}\n'
)


def make_run(tmp_path: Path, name: str, *overrides: str) -> IRPOConfig:
    """A run whose candidates are drawn and wait to be graded; it may take over from its siblings."""
    own = with_own_model(tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(PROBLEMS)
    pinned = ["num_iterations=1", "evaluation.num_samples=0", f"reuse_from=[{tmp_path}]"]
    config = load_config("quickstart", [f"run_root={tmp_path}", f"name={name}", *own, *pinned, *overrides])
    write_samples(config)
    RunFolder(config.run_folder).config.write_text(dump_config(config))
    finish_until(config, "iteration 0 grade")
    return config


def folder_of(config: IRPOConfig) -> IterationFolder:
    return RunFolder(config.run_folder).iteration(0)


def manifest_of(config: IRPOConfig, stage: str) -> Manifest:
    manifest = read_manifest(folder_of(config).manifest(stage))
    assert manifest is not None
    return manifest


@pytest.fixture
def first(tmp_path: Path) -> IRPOConfig:
    """A run that graded and paired by itself."""
    config = make_run(tmp_path, "first")
    for stage in ("grade", "pair"):
        run_stage(config, stage, 0)
        assert manifest_of(config, stage).taken_from is None
    return config


def test_a_second_run_takes_over_what_the_first_made(tmp_path: Path, first: IRPOConfig) -> None:
    second = make_run(tmp_path, "second")
    run_stage(second, "grade", 0)
    taken = manifest_of(second, "grade")
    assert taken == dataclasses.replace(manifest_of(first, "grade"), taken_from=str(tmp_path / "first"))
    assert find_step(second, "grade", 0).state == "done"
    mine, theirs = (folder_of(run).graded("train") / "part-00000.parquet" for run in (second, first))
    assert mine.stat().st_ino == theirs.stat().st_ino
    assert summarize(taken).endswith(f", taken over from {tmp_path}/first")


def test_the_origin_may_be_deleted(tmp_path: Path, first: IRPOConfig) -> None:
    second = make_run(tmp_path, "second")
    run_stage(second, "grade", 0)
    evaluation = read_json(folder_of(first).evaluation)
    shutil.rmtree(first.run_folder)
    assert find_step(second, "grade", 0).state == "done"
    assert read_json(folder_of(second).evaluation) == evaluation
    run_stage(second, "pair", 0)
    third = make_run(tmp_path, "third")
    run_stage(third, "grade", 0)
    assert manifest_of(third, "grade").taken_from == str(tmp_path / "first")


def test_a_copy_serves_where_there_are_no_hard_links(
    tmp_path: Path, first: IRPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    second = make_run(tmp_path, "second")
    monkeypatch.setattr("os.link", refuse)
    run_stage(second, "grade", 0)
    assert manifest_of(second, "grade").outputs == manifest_of(first, "grade").outputs
    mine, theirs = (folder_of(run).evaluation for run in (second, first))
    assert mine.stat().st_ino != theirs.stat().st_ino


def test_without_reuse_from_nothing_is_taken_over(tmp_path: Path, first: IRPOConfig) -> None:
    second = make_run(tmp_path, "second", "reuse_from=[]")
    run_stage(second, "grade", 0)
    assert manifest_of(second, "grade").taken_from is None
    assert manifest_of(second, "grade").outputs == manifest_of(first, "grade").outputs


def test_one_run_may_be_named_instead_of_a_folder_of_runs(tmp_path: Path, first: IRPOConfig) -> None:
    second = make_run(tmp_path, "second", f"reuse_from=[{first.run_folder}]")
    assert find_twin(second, find_step(second, "grade", 0)) is not None


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("override", ["grading.deadline_seconds=1.0", "grading.audit=true", "seed=1"])
def test_other_settings_are_no_twin(tmp_path: Path, override: str) -> None:
    second = make_run(tmp_path, "second", override)
    assert find_twin(second, find_step(second, "grade", 0)) is None


@pytest.mark.usefixtures("first")
def test_settings_of_other_stages_do_not_matter(tmp_path: Path) -> None:
    second = make_run(tmp_path, "second", "loss=dpo", "pairing.num_pairs_per_problem=9", "training.max_steps=7")
    assert find_twin(second, find_step(second, "grade", 0)) is not None
    run_stage(second, "grade", 0)
    assert find_twin(second, find_step(second, "pair", 0)) is None


@pytest.mark.usefixtures("first")
def test_other_inputs_are_no_twin(tmp_path: Path) -> None:
    second = make_run(tmp_path, "second")
    folder_of(second).manifest("sample").unlink()
    finish(find_step(second, "sample", 0), content="other candidates")
    assert find_twin(second, find_step(second, "grade", 0)) is None


@pytest.mark.usefixtures("first")
def test_another_program_is_no_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = make_run(tmp_path, "second")
    monkeypatch.setattr(reuse, "hash_code", lambda: "of another version")
    assert find_twin(second, find_step(second, "grade", 0)) is None


def test_the_program_is_what_decides_results() -> None:
    root = Path(reuse.__file__).parent
    rooms = {path.name for path in root.iterdir()}
    assert set(reuse._ROOMS_WITHOUT_EFFECT) <= rooms
    assert {"stages", "training", "sampling", "pairing.py"} <= rooms - set(reuse._ROOMS_WITHOUT_EFFECT)


def test_damaged_files_are_not_taken_over(tmp_path: Path, first: IRPOConfig) -> None:
    graded = manifest_of(first, "grade")
    write_json(folder_of(first).evaluation, {"accuracy": 1.0})
    second = make_run(tmp_path, "second")
    run_stage(second, "grade", 0)
    assert manifest_of(second, "grade").taken_from is None
    assert manifest_of(second, "grade").outputs == graded.outputs


def test_a_damaged_manifest_is_no_twin(tmp_path: Path, first: IRPOConfig) -> None:
    folder_of(first).manifest("grade").write_text("{")
    second = make_run(tmp_path, "second")
    assert find_twin(second, find_step(second, "grade", 0)) is None


def test_a_take_over_that_was_killed_starts_again(
    tmp_path: Path, first: IRPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    second = make_run(tmp_path, "second")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reuse, "write_manifest", kill)
        run_stage(second, "grade", 0)
    assert folder_of(second).evaluation.exists()
    assert find_step(second, "grade", 0).state == "ready"
    shutil.rmtree(folder_of(first).graded("train"))
    run_stage(second, "grade", 0)
    assert manifest_of(second, "grade").taken_from is None
    assert manifest_of(second, "grade").outputs == manifest_of(first, "grade").outputs


def test_models_of_one_shape_are_not_confused(tmp_path: Path) -> None:
    """Names and sizes of both model folders agree; their weights do not."""
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"weights 1")
    for config in (first, second):
        folder_of(config).manifest("sample").unlink()
    step = find_step(first, "sample", 0)
    finish(step)
    made = manifest_of(first, "sample")
    outputs = {f"{path.relative_to(first.run_folder)}/part": "1" for path in step.outputs}
    known = dataclasses.replace(
        made, outputs=outputs, code=reuse.hash_code(), model_hash=reuse.hash_own_model(first, step)
    )
    write_manifest(step.manifest, known)
    wanted = find_step(second, "sample", 0)
    assert find_twin(second, wanted) is not None
    weights.write_bytes(b"weights 2")
    assert find_step(second, "sample", 0).inputs == wanted.inputs
    assert find_twin(second, wanted) is None
    weights.write_bytes(b"weights 1")
    write_manifest(step.manifest, dataclasses.replace(known, model_hash=None))
    assert find_twin(second, wanted) is None


def test_shards_leave_a_step_with_a_twin_to_the_stage(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second")
    step = find_step(first, "sample", 0)
    made = manifest_of(first, "sample")
    outputs = reuse.hash_outputs(first.run_folder, step.outputs)
    known = dataclasses.replace(
        made, outputs=outputs, code=reuse.hash_code(), model_hash=reuse.hash_own_model(first, step)
    )
    write_manifest(step.manifest, known)
    shutil.rmtree(folder_of(second).root)
    run_shard(second, "sample", 0, Shard(0, 2))
    assert not folder_of(second).root.exists()
    run_stage(second, "sample", 0)
    assert manifest_of(second, "sample").taken_from == str(first.run_folder)


def test_the_other_ranks_see_that_rank_0_took_it_over(tmp_path: Path, first: IRPOConfig) -> None:
    second = make_run(tmp_path, "second")
    step = find_step(second, "grade", 0)
    assert not is_taken_over(step)
    run_stage(second, "grade", 0)
    assert is_taken_over(step)
    assert not is_taken_over(find_step(first, "grade", 0))
    folder_of(second).evaluation.unlink()
    assert not is_taken_over(step)
