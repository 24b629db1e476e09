"""The `irpo` command as a person meets it: start-up, exit codes, one line a mistake."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from irpo_nemo.artifacts import write_json
from irpo_nemo.launch.lock import hold_lock
from tests.sampling.test_parts import make_statistics
from tests.test_pipeline import PINNED, finish_until, make_config, with_own_model

HEAVY = (
    "torch",
    "megatron",
    "nemo",
    "lightning",
    "transformers",
    "tokenizers",
    "matplotlib",
    "tensorrt_llm",
    "datasets",
)


def irpo(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "irpo_nemo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)


def heavy_modules_of(*arguments: str) -> list[str]:
    """Heavy packages that are loaded when the command ends."""
    code = (
        "import sys, atexit; from irpo_nemo.cli import main\n"
        f"heavy = {HEAVY!r}\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('heavy:', *sorted({name.split('.')[0] for name in sys.modules} & set(heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.fixture
def started_run(tmp_path: Path) -> Path:
    """A run folder whose first steps are done."""
    config = make_config(tmp_path)
    finish_until(config, "iteration 0 sample")
    from irpo_nemo.config_files import dump_config

    (tmp_path / "quickstart/config.yaml").write_text(dump_config(config))
    return tmp_path / "quickstart"


def test_light_commands_load_nothing_heavy(started_run: Path) -> None:
    assert heavy_modules_of("--help") == []
    assert heavy_modules_of("plan", "quickstart", f"run_root={started_run.parent}", *PINNED) == []
    assert heavy_modules_of("status", str(started_run)) == []


def test_light_commands_answer_within_a_second(started_run: Path) -> None:
    for arguments in (["--help"], ["plan", "quickstart"], ["status", str(started_run)]):
        assert processor_seconds_of(*arguments) < 1


def processor_seconds_of(*arguments: str) -> float:
    """What a command takes on a machine that has nothing else to do."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    irpo(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_plan_prints_every_step_and_starts_nothing(tmp_path: Path) -> None:
    done = irpo("plan", "quickstart", f"run_root={tmp_path}", "num_iterations=1")
    assert done.returncode == 0
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        f"{tmp_path}/quickstart: 0 of 9 steps are done",
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
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "plan"])
def test_mistakes_are_one_line_each_and_exit_code_2(command: str) -> None:
    done = irpo(command, "quickstart", "loss.bata=1", "loss.beta=0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "quickstart: loss.bata: no such key. Did you mean loss.beta?",
        "quickstart: loss.beta: is 0.0, but must be greater than 0.0",
    ]


def test_overrides_may_stand_on_both_sides_of_an_option() -> None:
    done = irpo("table", "paper", "training.max_steps=7", "--plan", "seeds=4")
    assert done.returncode == 0, done.stderr
    runs = done.stdout.splitlines()[:-1]
    assert runs
    assert all("training.max_steps=7" in run and run.endswith("seed=4") for run in runs)


@pytest.mark.parametrize(
    "arguments",
    [["stage", "train", "quickstart", "iteration=x"], ["walk"], [], ["status", "a", "b"], ["plan", "a", "--b"]],
)
def test_unusable_arguments_are_exit_code_2(arguments: list[str]) -> None:
    done = irpo(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_stage_out_of_turn_is_refused(tmp_path: Path) -> None:
    done = irpo("stage", "pair", "quickstart", "iteration=0", f"run_root={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == (
        f"{tmp_path}/quickstart: iteration 0 pair comes after iteration 0 grade, which is not done. Run that first.\n"
    )


def test_a_run_of_another_configuration_is_refused(started_run: Path) -> None:
    done = irpo("run", "quickstart", f"run_root={started_run.parent}", *PINNED, "sft.max_steps=450")
    assert done.returncode == 2
    assert done.stderr == (
        f"sft.max_steps: is 450, but sft in {started_run} was made with sft.max_steps=500. "
        f"Set sft.max_steps=500, or start another run with name=...\n"
    )


def test_two_runs_of_one_folder_are_refused(started_run: Path) -> None:
    with hold_lock(started_run / "run.lock"):
        done = irpo("run", "quickstart", f"run_root={started_run.parent}", *PINNED)
        assert done.returncode == 2
        assert done.stderr.startswith(
            f"{started_run}: another `irpo run` is at work in this folder (process {os.getpid()}"
        )
        assert done.stderr.count("\n") == 1
        assert "iteration 0 sample  running" in irpo("status", str(started_run)).stdout


def test_status_tells_why_a_step_failed(started_run: Path) -> None:
    (started_run / "logs").mkdir()
    reason = {"message": "train.jsonl:7: is not JSON", "time": 1.0}
    (started_run / "logs/sample_00.failure.json").write_text(json.dumps(reason))
    done = irpo("status", str(started_run))
    assert done.returncode == 0
    lines = {line.split("  ")[0]: line.split(maxsplit=4)[3:] for line in done.stdout.splitlines()}
    assert lines["iteration 0 sample"] == ["failed", "train.jsonl:7: is not JSON"]
    assert lines["iteration 0 grade"] == ["waiting", "after iteration 0 sample"]


def test_status_shows_progress_and_the_last_metrics(started_run: Path) -> None:
    iteration = started_run / "iteration_00"
    (iteration / "samples/train").mkdir(parents=True)
    for shard in (0, 1):
        (iteration / f"samples/train/part-0000{shard}.parquet").write_bytes(b"")
        write_json(
            iteration / f"samples/train.statistics/part-0000{shard}.json",
            dataclasses.asdict(make_statistics(finished_at=100.0, seconds=50.0, tokens=3000)),
        )
    (iteration / "sample.started.json").write_text("{}")
    (started_run / "m0/train").mkdir()
    (started_run / "m0/train/metrics.jsonl").write_text(
        '{"step": 7, "loss/total": 1.23456, "mfu": null}\n{"step": 8, "lo'
    )
    done = irpo("status", str(started_run))
    assert "iteration 0 sample  interrupted  20/8400 candidates, 120 tokens/s, 5.8 h left" in done.stdout
    assert done.stdout.splitlines()[-1] == "last metrics (sft): step 7, loss/total 1.235"

    told = json.loads(irpo("status", "--json", str(started_run)).stdout)
    sample = next(step for step in told["steps"] if step["state"] == "interrupted")
    assert (sample["stage"], sample["done"], sample["total"], sample["unit"]) == ("sample", 20, 8400, "candidates")
    assert sample["seconds_left"] == pytest.approx(5.8 * 3600, rel=0.01)
    assert told["last_metrics"] == {"step": 7, "loss/total": 1.23456, "mfu": None}
    assert told["stopped"] == ""


def test_status_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    done = irpo("status", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        2,
        f"{tmp_path}: has no config.yaml, so it is not a run folder; wanted runs/NAME\n",
    )


def test_doctor_passes_its_self_tests() -> None:
    done = irpo("doctor")
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout
    assert "ok       grader" in done.stdout


def test_the_version_is_printed() -> None:
    assert irpo("--version").stdout.startswith("irpo-nemo ")


def test_output_into_a_closed_pipe_is_no_bug(tmp_path: Path) -> None:
    command = f"{sys.executable} -m irpo_nemo plan quickstart run_root={tmp_path} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * 200_000)
    done = irpo("run", "quickstart", f"run_root={small_disk}", "task.arithmetic.num_demonstrations=500")
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"{small_disk}/quickstart/m0/initial: cannot be written: the disk is full; free some space and run the same "
        f"command again, what is done is kept.\n"
    )


def test_a_disk_full_from_the_start_is_one_line(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(b"x" * 300_000)
    done = irpo("run", "quickstart", f"run_root={small_disk}")
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_read_only_run_folder_is_one_line(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = irpo("run", "quickstart", f"run_root={small_disk}")
    assert done.returncode == 2
    assert done.stderr == (
        f"{small_disk}/quickstart/run.lock: cannot be written: the file system is read-only; "
        f"set run_root to a folder that can be written.\n"
    )


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, signum: int, code: int) -> None:
    command = [sys.executable, "-m", "irpo_nemo", "run", "quickstart", f"run_root={tmp_path}"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline().endswith("prepare  starts\n")
    time.sleep(0.5)
    run.send_signal(signum)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == code
    assert errors == "interrupted; the same command goes on from here\n"


def test_a_failing_stage_is_told_once(tmp_path: Path) -> None:
    """The model folder's weights are missing, which only the sampler finds out."""
    config = make_config(tmp_path, "num_iterations=0", *with_own_model(tmp_path))
    done = irpo("run", "quickstart", f"run_root={tmp_path}", "num_iterations=0", *with_own_model(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"{config.model.path}: its tokenizer cannot be loaded (")
    assert done.stderr.count("\n") == 1
    status = irpo("status", str(config.run_folder)).stdout
    assert f"iteration 0 sample  failed   {config.model.path}: its tokenizer cannot be loaded (" in status
