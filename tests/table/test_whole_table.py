"""A table of two runs through every stage: what they share is done once, and changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from irpo_nemo.artifacts import read_json, read_manifest
from irpo_nemo.run_folder import RunFolder
from tests.e2e.runs import TINY_RUN, drop_times, finish_run, kill_when

pytestmark = pytest.mark.slow

TABLE = """
overrides: [num_iterations=1]
runs: {irpo: [], dpo: [loss=dpo]}
rows:
  - {id: m0, title: M_0, run: irpo, iteration: 0}
  - {id: m0_vote, title: M_0, run: irpo, iteration: 0, decoding: majority}
  - {id: irpo_1, title: IRPO, run: irpo, iteration: 1}
  - {id: dpo, title: DPO, run: dpo, iteration: 1}
comparisons: [{says: IRPO beats DPO, better: irpo_1, worse: dpo}]
curves: [{says: DPO lowers chosen, run: dpo, side: chosen, direction: falls}]
figures: [{file: curves, title: Curves, panels: {DPO: dpo, DPO + NLL: irpo}}]
"""
ONE_RANK = ("launcher.ranks=1", "parallel.tensor_model_parallel_size=1")
SIZES = (*(size for size in TINY_RUN if not size.startswith("num_iterations")), *ONE_RANK)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished table, killed while the second run took over from the first."""
    root = tmp_path_factory.mktemp("table")
    (root / "two.yaml").write_text(TABLE)
    process = start(root)
    taken = root / "out/seed_0/dpo/m0/prepare.manifest.json"
    assert kill_when(process, taken.exists, delay_seconds=0.5), (root / "output.txt").read_text()
    assert not (root / "out/seed_0/dpo/report/results.json").exists()
    assert start(root).wait(timeout=600) == 0, (root / "output.txt").read_text()
    return root / "out"


def start(root: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "irpo_nemo", "table", str(root / "two.yaml"), f"folder={root / 'out'}", *SIZES]
    with (root / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def test_the_second_run_did_nothing_again(table: Path) -> None:
    steps = read_json(table / "table.json")["steps"]
    taken = {f"{step['run']} {step['step']}" for step in steps if step["taken_from"]}
    assert taken == {"dpo prepare", "dpo sft", "dpo sample 0", "dpo grade 0", "dpo pair 0"}
    assert {step["taken_from"] for step in steps} == {"irpo", None}
    mine, theirs = (RunFolder(table / "seed_0" / run) for run in ("dpo", "irpo"))
    weights = [run.model_zero.hf / "model.safetensors" for run in (mine, theirs)]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino


def test_the_result_is_that_of_a_run_that_shared_nothing(table: Path, tmp_path: Path) -> None:
    finish_run(tmp_path, "num_iterations=1", "loss=dpo", "name=dpo", *SIZES)
    alone, shared = RunFolder(tmp_path / "dpo"), RunFolder(table / "seed_0" / "dpo")
    found, wanted = (json.loads(run.results.read_text()) for run in (shared, alone))
    taken = [iteration.pop("taken_from") for iteration in found["iterations"]]
    assert [list(stages) for stages in taken] == [["sample", "grade", "pair"], []]
    assert [iteration.pop("taken_from") for iteration in wanted["iterations"]] == [{}, {}]
    assert drop_times(found) == drop_times(wanted)
    for iteration in (0, 1):
        for stage in ("sample", "grade", "pair", "train"):
            manifests = [read_manifest(run.iteration(iteration).manifest(stage)) for run in (shared, alone)]
            assert [made and made.outputs for made in manifests] == [manifests[1] and manifests[1].outputs] * 2


def test_the_table_is_whole(table: Path) -> None:
    written = read_json(table / "table.json")
    assert all(row["mean"] is not None and not row["missing_seeds"] for row in written["rows"])
    assert len(written["claims"]) == 2
    assert "| M_0, maj@4 |" in (table / "table.md").read_text()
    assert (table / "curves.svg").exists()
