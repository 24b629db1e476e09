"""Whole runs in real child processes. Sampling and grading only: tests/e2e trains as well."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from irpo_nemo.config_files import load_config
from irpo_nemo.model_zero import make_initial_model
from irpo_nemo.run_folder import RunFolder

PROBLEMS = ["task.arithmetic.num_train_problems=6", "task.arithmetic.num_test_problems=40"]
SHAPE = [
    "task.arithmetic.num_demonstrations=50",
    "model.hidden_size=32",
    "model.num_layers=1",
    "model.ffn_hidden_size=64",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    folder = tmp_path_factory.mktemp("models") / "random"
    make_initial_model(load_config("quickstart", [*PROBLEMS, *SHAPE]), folder)
    return folder


def command_of(root: Path, model: Path, name: str) -> list[str]:
    options = [f"run_root={root}", f"name={name}", f"model.path={model}", "sft.enabled=false", "num_iterations=0"]
    sampling = ["sampler.problems_per_part=4", "sampling.max_new_tokens=24", "evaluation.num_samples=4"]
    return [sys.executable, "-m", "irpo_nemo", "run", "quickstart", *options, *PROBLEMS, *sampling]


def run(root: Path, model: Path, name: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command_of(root, model, name), capture_output=True, text=True, timeout=300)


def outputs_of(root: Path, name: str) -> dict[str, str]:
    """Digests of all that the stages wrote, the report with its times aside."""
    manifests = sorted((root / name).glob("iteration_*/*.manifest.json"))
    return {
        path: digest for manifest in manifests for path, digest in json.loads(manifest.read_text())["outputs"].items()
    }


@pytest.mark.slow
def test_a_run_goes_through_and_is_then_done(tmp_path: Path, model: Path) -> None:
    first = run(tmp_path, model, "once")
    assert first.returncode == 0, first.stderr
    titles = [line.split("  ", 1)[1] for line in first.stdout.splitlines() if line[:2].isdecimal()]
    assert titles[0] == "iteration 0  sample  starts"
    assert titles[1].startswith("iteration 0  sample  200 completions, ")
    assert titles[3].startswith("iteration 0  grade  M_0 accuracy ")
    assert titles[4] == "report  starts"
    folder = RunFolder(tmp_path / "once")
    assert folder.results.exists()
    assert folder.page.exists()
    assert json.loads(folder.environment.read_text())["packages"]["torch"]

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = run(tmp_path, model, "once")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert again.stdout.startswith(f"{tmp_path}/once: everything is done already\n")
    assert "M_0" in again.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.slow
def test_a_run_killed_while_sampling_gives_the_same_result(tmp_path: Path, model: Path) -> None:
    assert run(tmp_path, model, "whole").returncode == 0
    killed = subprocess.Popen(command_of(tmp_path, model, "killed"), stdout=subprocess.DEVNULL)
    parts = tmp_path / "killed/iteration_00/samples/test"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("part-*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/iteration_00/sample.manifest.json").exists(), "was too late to kill it"
    assert run(tmp_path, model, "killed").returncode == 0
    assert outputs_of(tmp_path, "killed") == outputs_of(tmp_path, "whole")
    counts = json.loads((tmp_path / "killed/iteration_00/sample.manifest.json").read_text())["counts"]
    assert counts["splits"]["test"]["completions_resumed"] > 0
