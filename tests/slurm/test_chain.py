"""Whole chains on a real cluster: the results of the local launcher, also when nodes, ranks and people misbehave."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.runs import TINY_RUN, finish_run, results_without_times
from tests.slurm.conftest import ChainRun

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

AWKWARD_NAME = 'it\'s "a"; $(run) `100 #`'


@pytest.fixture(scope="module")
def local_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """results.json of the same run on the local launcher, without times."""
    root = tmp_path_factory.mktemp("local")
    finish_run(root, *TINY_RUN)
    return without_name(results_without_times(root))


def without_name(results: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in results.items() if key != "run"}


def test_a_chain_gives_the_results_of_the_local_launcher(
    make_run: Callable[..., ChainRun], local_results: dict[str, object]
) -> None:
    run = make_run(AWKWARD_NAME, "launcher.slurm.launch=task_per_rank")
    assert run.submit().splitlines()[0].endswith("7 jobs, each after the one before has ended well")
    assert "is at work already" in run.submit()
    run.finish()
    assert without_name(results_without_times(run.root, run.folder.name)) == local_results
    assert "everything is done already" in run.submit()
    assert "all 9 steps are done" in run.irpo("status")


def test_a_chain_with_faults_gives_the_same_results(
    make_run: Callable[..., ChainRun], local_results: dict[str, object]
) -> None:
    run = make_run("faults", "launcher.slurm.hang_minutes=0.75", "launcher.slurm.max_attempts=6")
    two = [run.start(), run.start()]
    said = [process.communicate()[0] for process in two]
    assert sorted(process.returncode for process in two) in ([0, 0], [0, 2]), said
    assert len({line.split()[1] for line in run.queued().splitlines()}) == 7, "a stage was submitted twice"

    run.rank_of("node1", "sft")
    run.cluster.run("scontrol", "requeue", job_id_of(run, "sft"))
    os.kill(run.rank_of("node1", "shard=1/2", "iteration=0"), signal.SIGKILL)
    os.kill(run.rank_of("node2", "train", "iteration=0"), signal.SIGKILL)
    run.wait_until(lambda: len(run.starts_of("train_00")) == 2, "training starts again")
    os.kill(run.rank_of("node2", "train", "iteration=0"), signal.SIGSTOP)
    run.finish()

    assert without_name(results_without_times(run.root, run.folder.name)) == local_results
    assert len(run.starts_of("sft")) == 2
    assert [len(run.starts_of("sample_00", f"_{task}")) for task in (0, 1)] == [1, 2]
    assert len(run.starts_of("train_00")) >= 3
    (log,) = run.logs.glob("train_00.*.log")
    assert "rank 1 was killed (signal 9), most often because memory ran out" in log.read_text()
    assert "no step for 0.75 minutes; the stacks of its ranks stand in" in log.read_text()
    assert "most recent call first" in (run.logs / run.starts_of("train_00")[1] / "rank_0.log").read_text()


def job_id_of(run: ChainRun, job: str) -> str:
    line = next(line for line in run.queued().splitlines() if f"-{job} " in line)
    return line.split()[0]


def test_a_chain_that_cannot_go_on_says_why_and_goes_on_when_mended(make_run: Callable[..., ChainRun]) -> None:
    run = make_run("stuck", "launcher.slurm.python=/no/such/python", "launcher.slurm.max_attempts=2")
    run.submit()
    run.wait_until(lambda: not run.queued(), "the chain stops")
    assert len(run.starts_of("prepare")) == 2
    stopped = [line for line in run.irpo("status").splitlines() if line.startswith("stopped: ")]
    assert len(stopped) == 1
    assert "prepare (job" in stopped[0]
    assert "failed 2 times in a row, the last time: it could not be started (exit code 127)" in stopped[0]
    assert "/no/such/python: No such file or directory" in stopped[0]

    run.submit("launcher.slurm.python=null")
    run.rank_of("node1", "prepare")
    assert "prepare             running" in run.irpo("status")
    assert "cancelled 7 jobs" in run.irpo("cancel")
    run.wait_until(lambda: not run.queued(), "the chain is cancelled")
    assert "prepare (job" in run.irpo("status")
    assert "was cancelled" in run.irpo("status")
    assert not run.cluster.pids("node1", "irpo_nemo")


def test_the_cluster_leaves_nothing_in_etc() -> None:
    assert not Path("/etc/slurm/slurm.conf").exists()
