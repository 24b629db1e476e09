"""One cluster for all tests of this folder, on this machine; and the runs that they submit to it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.runs import TINY_RUN
from tools.slurm_cluster import PACKAGES, PROGRAMS, Cluster, install, why_not_here

CHAIN_SECONDS = 600.0


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes; Slurm is installed from Debian's packages when it is missing."""
    if reason := why_not_here():
        pytest.skip(reason)
    if not all(shutil.which(program) for program in PROGRAMS):
        install(*PACKAGES)
    folder = Path(tempfile.mkdtemp(prefix="irpo-slurm-", dir="/tmp"))  # its sockets need a short path
    cluster = Cluster(folder)
    cluster.start(num_nodes=2)
    try:
        yield cluster
    finally:
        cluster.stop()


class ChainRun:
    """A tiny run, 2 shards and 2 training ranks on 2 nodes, and what a user does with it."""

    def __init__(self, cluster: Cluster, root: Path, name: str, *overrides: str) -> None:
        self.cluster = cluster
        self.root = root
        self.folder = root / name
        self.arguments = [
            "quickstart",
            "launcher=slurm",
            f"run_root={root}",
            "name='" + name.replace("\\", "\\\\").replace("'", "\\'") + "'",
            *TINY_RUN,
            "launcher.slurm.shards=2",
            "launcher.slurm.trainer.nodes=2",
            *overrides,
        ]

    @property
    def state(self) -> Path:
        return self.folder / "slurm" / "state"

    @property
    def logs(self) -> Path:
        return self.folder / "slurm" / "logs"

    def start(self, *overrides: str) -> "subprocess.Popen[str]":
        """Begin `irpo run`, which submits and ends."""
        return self._popen("run", *self.arguments, *overrides)

    def submit(self, *overrides: str) -> str:
        """What `irpo run` says."""
        return self._finish(self.start(*overrides))

    def irpo(self, command: str, *options: str) -> str:
        """What `irpo status` or `irpo cancel` says."""
        return self._finish(self._popen(command, str(self.folder), *options))

    def wait_until(self, happens: Callable[[], bool], what: str) -> None:
        """Wait for something; when it takes too long, fail with the logs."""
        deadline = time.monotonic() + CHAIN_SECONDS
        while not happens():
            assert time.monotonic() < deadline, f"{what}: not within {CHAIN_SECONDS:g} s\n{self.describe()}"
            time.sleep(0.2)

    def finish(self) -> None:
        """Wait until no job is left, and see that the run is done."""
        self.wait_until(lambda: not self.queued(), "the chain ends")
        assert (self.folder / "report" / "results.json").exists(), self.describe()

    def queued(self) -> str:
        """The run's jobs that wait or run."""
        return self.cluster.run("squeue", "-h", "-r", "-o", "%i %j %T %r")

    def rank_of(self, node: str, *words: str) -> int:
        """The process of a stage on a node, once there is one."""
        self.wait_until(lambda: bool(self._ranks(node, *words)), f"{words} runs on {node}")
        return self._ranks(node, *words)[0]

    def starts_of(self, job: str, task: str = "") -> list[str]:
        """The log folders of a job, or of a task of its array ("_3"), one a start."""
        return sorted(path.name for path in self.logs.glob(f"{job}.*{task}.*") if path.is_dir())

    def describe(self) -> str:
        """Queue and logs, for a person who reads why a test failed."""
        logs = [f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(self.logs.glob("*.log"))]
        return "\n".join([self.queued(), *logs])

    def _ranks(self, node: str, *words: str) -> list[int]:
        found = self.cluster.pids(node, "irpo.py stage", *words)
        return [pid for pid in found if not {"srun", "torch.distributed.run"} & set(command_of(pid))]

    def _popen(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "irpo_nemo", *arguments],
            env=self.cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _finish(self, process: "subprocess.Popen[str]") -> str:
        output, _ = process.communicate(timeout=CHAIN_SECONDS)
        assert process.returncode == 0, output
        return output


def command_of(pid: int) -> list[str]:
    """Program and arguments of a process; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@pytest.fixture
def make_run(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., ChainRun]]:
    """Makes runs below a folder of the test's own; no job of theirs outlives the test."""

    def make(name: str, *overrides: str) -> ChainRun:
        return ChainRun(cluster, tmp_path, name, *overrides)

    yield make
    cluster.run("scancel", "--user", str(os.getuid()), check=False)
