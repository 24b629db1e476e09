"""Several processes draw one stage, and are killed while they do."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from irpo_nemo.artifacts import list_parts, part_path, read_manifest, read_parts, write_records
from irpo_nemo.cli import main
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import dump_config
from irpo_nemo.errors import ArtifactError, ConfigError
from irpo_nemo.pipeline import find_step
from irpo_nemo.records import Candidate
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling.parts import Shard
from irpo_nemo.stages.frame import run_shard, run_stage
from irpo_nemo.tasks import load_task
from tests.sampling.conftest import make_config


def make_run(folder: Path, model_folder: Path, *, name: str = "irpo", problems_per_part: int = 4) -> IRPOConfig:
    """A run whose first step is to sample."""
    config = make_config(problems_per_part=problems_per_part)
    config.run_root, config.name, config.num_iterations = str(folder), name, 1
    config.model.path = str(model_folder)
    return config


def read(config: IRPOConfig) -> list[Candidate]:
    folder = RunFolder(config.run_folder).iteration(0)
    return [made for split in ("train", "test") for made in read_parts(folder.samples(split), Candidate)]


def test_shards_and_then_the_stage_are_the_stage(tmp_path: Path, model_folder: Path) -> None:
    shards, whole = (make_run(tmp_path, model_folder, name=name) for name in ("shards", "whole"))
    for index in (2, 0, 1):
        run_shard(shards, "sample", 0, Shard(index, 3))
        assert find_step(shards, "sample", 0).state == "ready"
    run_stage(shards, "sample", 0)
    run_stage(whole, "sample", 0)
    assert read(shards) == read(whole)
    manifests = [read_manifest(RunFolder(run.run_folder).iteration(0).manifest("sample")) for run in (shards, whole)]
    assert manifests[0] is not None
    assert manifests[1] is not None
    assert manifests[0].outputs == manifests[1].outputs
    assert manifests[0].counts["splits"]["train"]["completions_resumed"] == 30
    run_shard(shards, "sample", 0, Shard(0, 3))  # done already


def test_the_stage_draws_what_shards_have_left(tmp_path: Path, model_folder: Path) -> None:
    config = make_run(tmp_path, model_folder)
    run_shard(config, "sample", 0, Shard(1, 2))
    run_stage(config, "sample", 0)
    assert len(read(config)) == 30 + 18


def test_the_command_takes_a_shard(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_run(tmp_path, model_folder)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert main(["stage", "sample", str(path), "iteration=0", "shard=1/2"]) == 0
    assert [part.name for part in list_parts(RunFolder(config.run_folder).iteration(0).samples("train"))] == [
        "part-00001.parquet"
    ]
    for shard in ("2/2", "1", "a/b"):
        assert main(["stage", "sample", str(path), "iteration=0", f"shard={shard}"]) == 2
        assert f"shard: is {shard}, but I/N with I from 0 to N - 1 is wanted" in capsys.readouterr().err


def test_other_stages_have_no_shards(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="shard=0/2: stage grade has no shards"):
        run_shard(make_run(tmp_path, model_folder), "grade", 0, Shard(0, 2))


def test_a_shard_refuses_leftovers_of_another_attempt(tmp_path: Path, model_folder: Path) -> None:
    config = make_run(tmp_path, model_folder)
    run_shard(config, "sample", 0, Shard(0, 2))
    config.sampling.temperature = [0.5]
    with pytest.raises(ArtifactError) as error:
        run_shard(config, "sample", 0, Shard(1, 2))
    samples = RunFolder(config.run_folder).iteration(0).samples("train")
    assert str(error.value) == (
        f"{samples}: is left of another attempt at iteration 0 sample, and a shard clears nothing that others may be "
        f"at. Delete {samples.parent} and start the shards again."
    )


def test_a_part_of_another_model_is_found_when_shards_are_put_together(tmp_path: Path, model_folder: Path) -> None:
    config = make_run(tmp_path, model_folder)
    run_shard(config, "sample", 0, Shard(0, 2))
    other = make_run(tmp_path, model_folder, name="other")
    run_shard(other, "sample", 0, Shard(1, 2))
    theirs = RunFolder(other.run_folder).iteration(0).samples("train")
    ours = RunFolder(config.run_folder).iteration(0).samples("train")
    stale = [dataclasses.replace(made, model_hash="b" * 64) for made in read_parts(theirs, Candidate)]
    write_records(part_path(ours, 1), stale, Candidate)
    with pytest.raises(ArtifactError, match="was sampled from model bbbbbbbbbbbb, but this iteration starts from "):
        run_stage(config, "sample", 0)


KILLER = """
import json, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from irpo_nemo.config_files import load_config
from irpo_nemo.pipeline import model_of
from irpo_nemo.sampling import open_sampler
from irpo_nemo.sampling.parts import Shard
from irpo_nemo.stages import sample
from irpo_nemo.stages.frame import run_shard

config, num_kills, dice = load_config(sys.argv[1]), int(sys.argv[2]), random.Random(5)
sampler = open_sampler(config, model_of(config, 0))  # loaded once, so that kills fall into the work and not the start
generate = sampler.generate

def generate_slowly(*args, **options):
    time.sleep(0.1)
    return generate(*args, **options)

sampler.generate = generate_slowly
sample.open_sampler = lambda config, model: sampler

def start(index):
    pid = os.fork()
    if pid == 0:
        run_shard(config, "sample", 0, Shard(index, 4))
        os._exit(0)
    return pid

running = {start(index): index for index in range(4)}
kills = on_work = 0
while kills < num_kills:
    time.sleep(dice.uniform(0.0, 0.2))
    pid = dice.choice(sorted(running))
    index = running.pop(pid)
    on_work += os.waitpid(pid, os.WNOHANG)[0] == 0
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
    kills += 1
    running[start(index)] = index
codes = [os.waitpid(pid, 0)[1] for pid in sorted(running)]
print(json.dumps({"codes": codes, "on_work": on_work}))
"""


def test_twenty_kills_over_four_shards_cost_time_and_nothing_else(tmp_path: Path, model_folder: Path) -> None:
    killed, calm = (make_run(tmp_path, model_folder, name=name, problems_per_part=1) for name in ("killed", "calm"))
    for config in (killed, calm):
        config.task.arithmetic.num_train_problems = 40
        config.sampling.num_candidates = 4
    told = run_killer(killed, tmp_path, num_kills=20)
    assert told["codes"] == [0, 0, 0, 0]
    assert told["on_work"] >= 15, "most kills hit a shard at work"
    run_stage(killed, "sample", 0)
    run_stage(calm, "sample", 0)
    ids = [made.candidate_id for made in read(killed)]
    task = load_task(killed)
    assert ids == [f"{p.problem_id}/sample/{i}" for p in task.train_problems() for i in range(4)] + [
        f"{p.problem_id}/{rest}" for p in task.test_problems() for rest in ("greedy/0", "sample/0", "sample/1")
    ]
    assert read(killed) == read(calm)
    killed_one, calm_one = (
        read_manifest(RunFolder(run.run_folder).iteration(0).manifest("sample")) for run in (killed, calm)
    )
    assert killed_one is not None
    assert calm_one is not None
    assert killed_one.counts["splits"]["train"]["completions_resumed"] == 160
    assert killed_one.counts["seconds_elsewhere"]["cpu"] > 0
    assert calm_one.counts["seconds_elsewhere"] == {}


def run_killer(config: IRPOConfig, folder: Path, *, num_kills: int) -> dict[str, Sequence[int]]:
    path = folder / "killed.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-c", KILLER, str(path), str(num_kills)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout.splitlines()[-1]))
