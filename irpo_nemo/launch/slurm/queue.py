"""What is asked of Slurm, and how its answers are read: sbatch, squeue, sacct, scancel."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from irpo_nemo.errors import MachineError

_COMMAND_SECONDS = 60.0
_COLUMNS = "%F|%K|%T|%r|%M|%N"
"""Array or job id, tasks, state, why it waits, time used, nodes."""

LIVE_STATES = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One line of the queue: a job, a task of an array, or those of its tasks that still wait."""

    job_id: int
    tasks: str
    """"3", or "4-63%16" of those that wait; empty where there is no array."""
    state: str
    reason: str
    elapsed: str
    nodes: str

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES


def require_slurm() -> None:
    """Refuse a machine without Slurm's commands.

    Raises:
        MachineError: There is no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise MachineError(
            "launcher: is slurm, but there is no sbatch on this machine. Go to a login node of the cluster, or use "
            "launcher=local; launcher.dry_run=true shows the scripts anywhere."
        )


def submit(script: Path, *, after: int | None) -> int:
    """Submit a script, to run when job `after` has ended well; return the job's id.

    Raises:
        MachineError: Slurm refuses, in its own words.
    """
    command = ["sbatch", "--parsable"]
    if after is not None:
        command += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    done = _run([*command, str(script)])
    if done.returncode:
        raise MachineError(f"{script}: sbatch refuses it: {' '.join(done.stderr.split())}")
    return int(done.stdout.strip().split(";")[0])


def cancel(job_ids: Sequence[int]) -> None:
    """End jobs that wait or run.

    Raises:
        MachineError: Slurm cannot be asked.
    """
    done = _run(["scancel", *map(str, job_ids)])
    if done.returncode:
        raise MachineError(f"scancel {' '.join(map(str, job_ids))}: {' '.join(done.stderr.split())}")


def look_up(job_ids: Sequence[int]) -> list[Task]:
    """What Slurm says of these jobs, ended ones too as long as it remembers them.

    Raises:
        MachineError: Slurm cannot be asked.
    """
    if not job_ids:
        return []
    done = _run(
        ["squeue", "--noheader", "--states=all", f"--jobs={','.join(map(str, job_ids))}", f"--format={_COLUMNS}"]
    )
    if done.returncode and "Invalid job id" not in done.stderr:
        raise MachineError(f"squeue: {' '.join(done.stderr.split())}")
    tasks = [_read_line(line) for line in done.stdout.splitlines()]
    forgotten = sorted(set(job_ids) - {task.job_id for task in tasks})
    return tasks + _look_up_ended(forgotten)


def _read_line(line: str) -> Task:
    job_id, tasks, state, reason, elapsed, nodes = line.split("|")
    return Task(
        job_id=int(job_id),
        tasks="" if tasks == "N/A" else tasks,
        state=state,
        reason="" if reason == "None" else reason,
        elapsed=elapsed,
        nodes=nodes,
    )


def _look_up_ended(job_ids: Sequence[int]) -> list[Task]:
    """What accounting remembers of jobs that left the queue; nothing on clusters without it."""
    if not job_ids or shutil.which("sacct") is None:
        return []
    fields = "--format=JobID,State,Elapsed,NodeList"
    done = _run(["sacct", "-n", "-P", "-X", f"--jobs={','.join(map(str, job_ids))}", fields])
    tasks = []
    for line in done.stdout.splitlines() if not done.returncode else ():
        name, state, elapsed, nodes = line.split("|")
        job_id, _, task = name.partition("_")
        state = state.split()[0]  # "CANCELLED by 1000"
        tasks.append(
            Task(job_id=int(job_id), tasks=task.strip("[]"), state=state, reason="", elapsed=elapsed, nodes=nodes)
        )
    return tasks


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS)
    except FileNotFoundError:
        raise MachineError(f"{command[0]}: not found; go to a login node of the cluster.") from None
    except subprocess.TimeoutExpired:
        raise MachineError(f"{command[0]}: no answer within {_COMMAND_SECONDS:g} s; is the controller up?") from None
