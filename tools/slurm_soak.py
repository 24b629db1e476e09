#!/usr/bin/env python3
"""Random faults for chains on a real Slurm of several nodes on this machine, for a person to run; takes an hour.

    tools/slurm_soak.py DIR [--faults 30] [--seed 0] [--kinds kill_rank,stop_rank]

Runs a tiny configuration on the local launcher, then chain after chain with faults until so many were injected; a
chain that was ended is submitted again, as a person would. Every chain must end with the results of the local run,
each candidate and step once. Prints a line a fault, and a table. Root on Debian.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.e2e.runs import TINY_RUN  # noqa: E402
from tools.slurm_cluster import Cluster  # noqa: E402

STALL_SECONDS = 1800.0
OPTIONS = (
    "launcher=slurm",
    "launcher.slurm.shards=3",
    "launcher.slurm.trainer.nodes=2",
    "launcher.slurm.hang_minutes=1.5",
    "launcher.slurm.sampler.partition=low",
    "launcher.slurm.trainer.partition=low",
    "launcher.slurm.cpu.partition=low",
    "launcher.slurm.trainer.notice_seconds=30",
    "training.max_steps=12",
    "sft.max_steps=12",
    "sft.num_epochs=3",
    "training.num_epochs=3",
)


class Soak:
    """A cluster, the run that is at work on it, and what was done to it."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder = folder
        self.cluster = Cluster(folder / "slurm")
        self.random = random.Random(seed)
        self.name = ""
        self.options: tuple[str, ...] = ()
        self.submissions = 0

    # ---- runs

    def irpo(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        environment = self.cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            [sys.executable, "-m", "irpo_nemo", *arguments], env=environment, capture_output=True, text=True, **options
        )

    def arguments(self, name: str, *overrides: str) -> list[str]:
        return ["quickstart", f"run_root={self.run_root}", f"name={name}", *TINY_RUN, *overrides]

    @property
    def run_root(self) -> Path:
        return self.folder / "runs"

    @property
    def run(self) -> Path:
        return self.run_root / self.name

    def submit(self) -> None:
        self.submissions += 1
        done = self.irpo("run", *self.arguments(self.name, *OPTIONS, *self.options))
        if done.returncode:
            self.say(f"irpo run: {(done.stdout + done.stderr).strip().splitlines()[-1]}")

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.irpo("status", "--json", str(self.run)).stdout))

    def queued(self) -> list[list[str]]:
        """id, name, state and nodes of each job that waits or runs."""
        said = self.cluster.run("squeue", "-h", "-r", "-o", "%i|%j|%T|%N", check=False)
        return [line.split("|") for line in said.splitlines() if "irpo-" in line]

    def running(self) -> list[list[str]]:
        return [job for job in self.queued() if job[2] == "RUNNING"]

    def wait(self, happens: Callable[[], Any]) -> Any:
        """What `happens` gives once it gives something; None when the run ends or stalls before."""
        deadline = time.monotonic() + STALL_SECONDS
        while time.monotonic() < deadline:
            if found := happens():
                return found
            if not self.queued():
                return None
            time.sleep(0.3)
        raise SystemExit(f"{self.name}: nothing happens: {self.queued()}; {self.status()['stopped']}")

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {self.name}  {text}", flush=True)

    # ---- faults: each says what it did, or gives None where there was nothing to do it to

    def scancel(self) -> str | None:
        if job := self.wait(self._pick_running):
            self.cluster.run("scancel", job[0], check=False)
            return f"scancel {job[1]}"
        return None

    def requeue(self) -> str | None:
        if job := self.wait(self._pick_running):
            self.cluster.run("scontrol", "requeue", job[0], check=False)
            return f"scontrol requeue {job[1]}"
        return None

    def kill_slurmd(self) -> str | None:
        """The daemon of a node that works; its processes live on while Slurm starts the job elsewhere."""
        if job := self.wait(self._pick_running):
            node = self._node_of(job)
            self.cluster.kill_slurmd(node)
            time.sleep(25)
            self.cluster.start_node(node)
            return f"slurmd of {node} killed under {job[1]}, back after 25 s"
        return None

    def kill_node(self) -> str | None:
        if job := self.wait(self._pick_running):
            node = self._node_of(job)
            self.cluster.kill_node(node)
            time.sleep(15)
            self.cluster.start_node(node)
            return f"{node} switched off under {job[1]}, back after 15 s"
        return None

    def node_down(self) -> str | None:
        if job := self.wait(self._pick_running):
            node = self._node_of(job)
            self.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=soak", check=False)
            time.sleep(10)
            self.cluster.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            return f"{node} set down under {job[1]}, resumed after 10 s"
        return None

    def kill_rank(self) -> str | None:
        return self._signal_rank(signal.SIGKILL)

    def stop_rank(self) -> str | None:
        """A hang: only the watchdogs of the other ranks notice. Training alone has them."""
        return self._signal_rank(signal.SIGSTOP, "train", "sft")

    def time_limit(self) -> str | None:
        """A limit that comes sooner than the stage ends."""
        if job := self.wait(self._pick_running):
            self.cluster.run("scontrol", "update", f"jobid={job[0]}", "timelimit=1", check=False)
            time.sleep(90)
            self.cluster.run("scontrol", "update", f"jobid={job[0]}", "timelimit=60", check=False)
            return f"{job[1]} limited to one minute, for 90 s"
        return None

    def preempt(self) -> str | None:
        if job := self.wait(self._pick_running):
            self.cluster.run("srun", "-p", "high", "-N3", "--exclusive", "sleep", "3", check=False)
            return f"{job[1]} preempted by a job of partition high"
        return None

    def fail_task_twice(self) -> str | None:
        """A task of an array fails, and fails again when it is redone."""
        for _ in range(2):
            pid = self.wait(lambda: self._rank("shard=1/3"))
            if pid is None:
                return None
            os.kill(pid, signal.SIGKILL)
            self.wait(lambda pid=pid: not Path(f"/proc/{pid}").exists())
        return "a task of the array killed twice"

    def full_disk(self) -> str | None:
        """The run folder's file system fills up; after the chain has stopped, somebody makes room."""
        if not self.wait(self._pick_running):
            return None
        ballast = self.run_root / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                pass
        time.sleep(45)
        said = self.status()["stopped"]
        ballast.unlink()
        return f"disk full for 45 s; status said: {said or 'nothing, the chain goes on'}"

    def restart_controller(self) -> str | None:
        if job := self.wait(self._pick_running):
            self.cluster.kill_controller()
            time.sleep(self.random.choice((1, 12)))
            self.cluster.start_controller()
            return f"controller killed under {job[1]} and started again"
        return None

    def submit_twice(self) -> str | None:
        before = {job[0].split("_")[0] for job in self.queued()}
        command = [sys.executable, "-m", "irpo_nemo", "run", *self.arguments(self.name, *OPTIONS, *self.options)]
        environment = self.cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
        two = [subprocess.Popen(command, env=environment, stdout=-3, stderr=-3) for _ in range(2)]
        codes = [process.wait() for process in two]
        added = {job[0].split("_")[0] for job in self.queued()} - before
        return f"irpo run twice at once while the chain works: exit codes {codes}, {len(added)} jobs more"

    def submit_by_hand(self) -> str | None:
        """Somebody runs sbatch on the script of a stage that is at work."""
        if job := self.wait(self._pick_running):
            script = self.run / "slurm" / f"{job[1].removeprefix(f'irpo-{self.name}-')}.sbatch"
            self.cluster.run("sbatch", str(script), check=False)
            return f"{script.name} submitted by hand while it runs"
        return None

    def _pick_running(self) -> list[str] | None:
        jobs = self.running()
        return self.random.choice(jobs) if jobs else None

    def _node_of(self, job: list[str]) -> str:
        hosts = self.cluster.run("scontrol", "show", "hostnames", job[3]).split()
        return self.random.choice(hosts) if hosts else "node1"

    def _rank(self, *words: str) -> int | None:
        pids = [pid for node in self.cluster.nodes for pid in self.cluster.pids(node, "irpo.py stage", *words)]
        pids = [pid for pid in pids if not {"srun", "torch.distributed.run"} & set(_command_line(pid).split("\0"))]
        return self.random.choice(pids) if pids else None

    def _signal_rank(self, signum: int, *stages: str) -> str | None:
        def find() -> int | None:
            return self._rank(self.random.choice(stages)) if stages else self._rank()

        pid = self.wait(find)
        if pid is None:
            return None
        time.sleep(self.random.uniform(0, 8))
        words = _command_line(pid).split("\0")
        if not any(word.endswith("irpo.py") for word in words):
            return None  # it has ended meanwhile
        os.kill(pid, signum)
        return f"{signal.Signals(signum).name} to a rank of {words[words.index('stage') + 1]}"


FAULTS: dict[str, Callable[[Soak], str | None]] = {
    name: getattr(Soak, name)
    for name in (
        "scancel", "requeue", "kill_slurmd", "kill_node", "node_down", "kill_rank", "stop_rank", "time_limit",
        "preempt", "fail_task_twice", "full_disk", "restart_controller", "submit_twice", "submit_by_hand",
    )
}  # fmt: skip


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def results_of(run: Path) -> Any:
    """results.json without times and the run's name."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items() if key not in ("seconds", "run")}
        return [clean(inner) for inner in value] if isinstance(value, list) else value

    return clean(json.loads((run / "report" / "results.json").read_text()))


def steps_once(run: Path) -> bool:
    """Whether every training run has each step once, in order."""
    for path in run.glob("*/train/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        if steps != list(range(len(steps))):
            return False
    return True


def soak(state: Soak, kinds: list[str], count: int, expected: Any) -> bool:
    """Inject faults, chain after chain; whether all chains ended as they should."""
    done: Counter[str] = Counter()
    todo = [kinds[index % len(kinds)] for index in range(count)]
    state.random.shuffle(todo)
    chains, is_good = 0, True
    while todo:
        chains += 1
        state.name = f"soak{chains}"
        state.submit()
        misses = 0
        while todo and misses < 3:
            time.sleep(state.random.uniform(1, 15))
            kind = todo.pop()
            began = time.monotonic()
            what = FAULTS[kind](state)
            if what is None:
                todo.insert(0, kind)
                misses += 1
            else:
                done[kind] += 1
                state.say(f"{kind}: {what} ({time.monotonic() - began:.0f} s)")
            if not settle(state):
                break
        is_good &= finish(state, expected)
    print(f"{sum(done.values())} faults in {chains} chains: {dict(sorted(done.items()))}")
    return is_good


def settle(state: Soak) -> bool:
    """Submit again what a fault has ended; False once the run is done."""
    time.sleep(3)
    if state.queued():
        return True
    status = state.status()
    if all(step["state"] == "done" for step in status["steps"]):
        return False
    state.say(f"stopped: {status['stopped']}")
    state.submit()
    return True


def finish(state: Soak, expected: Any) -> bool:
    """Let the chain end, submitting again as often as it stops; whether its results are those of the local run."""
    for _ in range(10):
        state.wait(lambda: None)
        if not settle(state):
            break
    is_same = results_of(state.run) == expected
    is_once = steps_once(state.run)
    state.say(f"ends: results {'the same' if is_same else 'DIFFER'}, steps {'once' if is_once else 'NOT ONCE'}, "
              f"{state.submissions} submissions so far")  # fmt: skip
    return is_same and is_once


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(FAULTS))
    parsed = parser.parse_args()
    state = Soak(parsed.folder, seed=parsed.seed)
    state.run_root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "soak", str(state.run_root)], check=True)
    try:
        state.cluster.start(num_nodes=3, cpus=4)
        local = state.irpo("run", *state.arguments("local", *OPTIONS, "launcher=local", "launcher.slurm={}"))
        if local.returncode:
            raise SystemExit(local.stdout + local.stderr)
        expected = results_of(state.run_root / "local")
        return 0 if soak(state, parsed.kinds.split(","), parsed.faults, expected) else 1
    finally:
        state.cluster.stop()
        shutil.copytree(state.run_root, parsed.folder / "kept", dirs_exist_ok=True)
        subprocess.run(["umount", "--lazy", str(state.run_root)], check=False)


if __name__ == "__main__":
    sys.exit(main())
