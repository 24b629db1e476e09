"""The transformers sampler in two processes."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.artifacts import list_parts, read_parts
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import dump_config
from irpo_nemo.errors import ConfigError, MachineError
from irpo_nemo.records import Candidate
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling import open_sampler
from irpo_nemo.sampling.transformers_pool import TransformersPool
from irpo_nemo.stages.frame import run_stage
from tests.sampling.conftest import make_config
from tests.sampling.test_engine_parts import is_alive
from tests.sampling.test_shards import make_run
from tests.sampling.test_transformers import generate, make_requests


def make_pool_config(folder: Path, *, batch_size: int = 4) -> IRPOConfig:
    config = make_config(batch_size=batch_size)
    config.run_root = str(folder)
    config.sampler.transformers.num_processes = 2
    return config


@pytest.fixture(scope="module")
def pool(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sampler = open_sampler(make_pool_config(tmp_path_factory.mktemp("pool")), model_folder)
    yield sampler
    sampler.close()


def processes_of(pool: Any) -> list[int]:
    """Every process of the pool's groups."""
    groups = {process._process.pid for process in pool._processes}
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) in groups:
            found.append(int(path.parent.name))
    return found


def test_completions_are_those_of_one_process(pool: Any, model_folder: Path) -> None:
    assert isinstance(pool, TransformersPool)
    assert pool.window == 8
    for requests in (make_requests(), make_requests(temperature=0.0, copies=2), []):
        assert pool.generate(requests) == generate(model_folder, requests, batch_size=4)


def test_both_processes_work_on_calls_from_several_threads(pool: Any, model_folder: Path) -> None:
    before = [process.answers for process in pool._processes]
    made: dict[int, Any] = {}
    calls = [make_requests(copies=2, max_new_tokens=length) for length in (5, 9)]
    threads = [
        threading.Thread(target=lambda n=n: made.update({n: pool.generate(calls[n])}))  # type: ignore[misc]
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [made[number] for number in range(2)] == [generate(model_folder, call, batch_size=4) for call in calls]
    assert all(process.answers > past for process, past in zip(pool._processes, before, strict=True))


def test_an_error_in_a_process_is_the_error_of_one_process(pool: Any, model_folder: Path) -> None:
    requests = make_requests(max_new_tokens=505)
    with pytest.raises(ConfigError, match=r"sampling\.max_new_tokens: is 505, but the prompt of problem \d has"):
        pool.generate(requests)
    assert pool.generate(make_requests()) == generate(model_folder, make_requests(), batch_size=4)


def test_a_process_that_is_killed_is_one_clear_error_and_leaves_nobody(tmp_path: Path, model_folder: Path) -> None:
    pool: Any = open_sampler(make_pool_config(tmp_path), model_folder)
    everyone = processes_of(pool)
    assert len(everyone) >= 2
    os.killpg(pool._processes[1]._process.pid, signal.SIGKILL)
    with pytest.raises(MachineError) as error:
        pool.generate(make_requests(copies=20))
    pool.close()
    assert str(error.value) == (
        f"{tmp_path}/irpo/logs/sampling_1.log: a sampling process is gone, most often because memory ran out. Set "
        "sampler.batch_size or sampler.transformers.num_processes lower, then run the same command again; what is done "
        "is kept."
    )
    wait_until_gone(everyone)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, model_folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    with pytest.raises(MachineError) as error:
        open_sampler(make_pool_config(tmp_path), tmp_path)
    assert str(error.value).startswith("the engine ended before it was ready; its log ")
    assert f"{tmp_path}: cannot be loaded (" in str(error.value)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_stage_that_is_stopped_leaves_no_process_and_can_go_on(
    tmp_path: Path, model_folder: Path, signum: signal.Signals
) -> None:
    stopped, whole = (make_run(tmp_path, model_folder, name=name, problems_per_part=1) for name in ("stopped", "whole"))
    stopped.sampler.transformers.num_processes = 2
    for config in (stopped, whole):
        config.task.arithmetic.num_train_problems = 60
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(stopped))
    samples = RunFolder(stopped.run_folder).iteration(0).samples
    command = [sys.executable, "-m", "irpo_nemo", "stage", "sample", str(path), "iteration=0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list_parts(samples("train"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    workers = children_of(process.pid)
    process.send_signal(signum)
    process.wait()
    assert workers
    wait_until_gone(workers)
    run_stage(dataclasses.replace(stopped, sampler=whole.sampler), "sample", 0)
    run_stage(whole, "sample", 0)
    for split in ("train", "test"):
        there = list(read_parts(samples(split), Candidate))
        assert there == list(read_parts(RunFolder(whole.run_folder).iteration(0).samples(split), Candidate))


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """Children, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children_of(child)]
    return found
