import json
import os
from pathlib import Path

import pytest

from irpo_nemo.artifacts import (
    Manifest,
    digest_of,
    explain_os_errors,
    hash_model_folder,
    hash_outputs,
    list_parts,
    part_path,
    publish_folder,
    read_json,
    read_manifest,
    read_parts,
    read_records,
    write_atomically,
    write_json,
    write_manifest,
    write_records,
    write_text,
)
from irpo_nemo.errors import ArtifactError
from irpo_nemo.records import Demonstration, Problem

PROBLEMS = [
    Problem(problem_id="a", question="2 + 2?", gold_answer="4", solution="2 + 2 = 4"),
    Problem(problem_id="b", question="Größe?\u2028", gold_answer="1", solution=None),
]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_records(tmp_path / "problems.parquet", PROBLEMS, Problem)
    assert read_records(tmp_path / "problems.parquet", Problem) == PROBLEMS


def test_no_records_are_a_file_too(tmp_path: Path) -> None:
    write_records(tmp_path / "none.parquet", [], Problem)
    assert read_records(tmp_path / "none.parquet", Problem) == []


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_records(tmp_path / name, PROBLEMS, Problem)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_parts_are_read_in_order_and_temporary_files_are_not(tmp_path: Path) -> None:
    for index in (10, 2):
        rows = [Demonstration(demonstration_id=str(index), prompt_token_ids=[1], token_ids=[2])]
        write_records(part_path(tmp_path, index), rows, Demonstration)
    (tmp_path / ".part-00003.parquet.17.tmp").write_text("half")
    assert [row.demonstration_id for row in read_parts(tmp_path, Demonstration)] == ["2", "10"]
    assert list(hash_outputs(tmp_path, [tmp_path])) == ["part-00002.parquet", "part-00010.parquet"]
    assert len(list_parts(tmp_path)) == 2


def test_missing_damaged_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "problems.parquet"
    with pytest.raises(ArtifactError, match=r"problems.parquet: missing\. Run the stage that writes it again"):
        read_records(path, Problem)
    write_records(path, PROBLEMS, Problem)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match=r"problems.parquet: damaged \(.*\)\. Delete it and run `irpo run` again"):
        read_records(path, Problem)
    write_records(path, [], Demonstration)
    with pytest.raises(ArtifactError, match=r"has columns .*demonstration_id.*, but Problem wants .*made by another"):
        read_records(path, Problem)


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})

    def fail_halfway(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, fail_halfway)
    assert read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_nan_is_refused_because_json_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "value.json").write_text('{"a": ')
    with pytest.raises(ArtifactError, match=r"value.json: damaged \(Expecting value.*\)\. Delete it and run"):
        read_json(tmp_path / "value.json")


def test_a_folder_is_published_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "stale").write_text("old")
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / "fresh").write_text("new")
    publish_folder(tmp_path / ".new", tmp_path / "hf")
    assert [file.name for file in (tmp_path / "hf").iterdir()] == ["fresh"]
    assert not (tmp_path / ".new").exists()


def make_manifest(**changes: object) -> Manifest:
    values = {"stage": "pair", "iteration": 0, "settings": {}, "inputs": {}, "outputs": {"a": "1"}, "counts": {}}
    return Manifest(**{**values, "seconds": {"total": 1.0}, **changes})  # type: ignore[arg-type]


def test_a_manifest_comes_back_and_its_identity_ignores_times(tmp_path: Path) -> None:
    path = tmp_path / "pair.manifest.json"
    assert read_manifest(path) is None
    write_manifest(path, make_manifest())
    assert read_manifest(path) == make_manifest()
    assert make_manifest(seconds={"total": 9.0}).digest == make_manifest().digest
    assert make_manifest(outputs={"a": "2"}).digest != make_manifest().digest


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pair.manifest.json"
    path.write_text(json.dumps({"stage": "pair"}))
    with pytest.raises(ArtifactError, match=r"is not a manifest of this version\. Delete it to redo the stage\.$"):
        read_manifest(path)


def test_the_digest_of_a_value_ignores_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_model_folder_is_known_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = hash_model_folder(tmp_path)
    (tmp_path / "README.md").write_text("not part of the model")
    assert hash_model_folder(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    assert hash_model_folder(tmp_path) != before


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def write(temporary: Path) -> None:
        temporary.symlink_to("/dev/full")
        temporary.write_text("x" * 100_000)

    with pytest.raises(ArtifactError, match=r"value\.json: cannot be written: the disk is full; free some space"):
        write_atomically(tmp_path / "value.json", write)


def test_a_full_disk_is_known_by_the_text_of_rust_packages_too(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the disk is full"), explain_os_errors(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="another"), explain_os_errors(tmp_path):
        raise RuntimeError("another error (os error 5)")


def test_a_file_in_the_place_of_the_run_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ArtifactError, match=r"a file stands where a folder is needed; set run_root or name"):
        write_text(tmp_path / "runs" / "x" / "config.yaml", "")


def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; tests/test_cli.py mounts a read-only file system instead")
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match=r"permission denied; set run_root to a folder that can be written"):
        write_text(tmp_path / "value.txt", "")
