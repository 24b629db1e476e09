"""What has become of the last submission: its jobs, as Slurm and supervise.sh tell of them, in words."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from irpo_nemo.errors import MachineError
from irpo_nemo.launch.slurm.queue import Task, look_up
from irpo_nemo.launch.slurm.submit import Chain, Submitted, read_chain
from irpo_nemo.pipeline import Step
from irpo_nemo.run_folder import RunFolder

_NO_SPACE_BYTES = 1 << 20

_ENDS = {
    "CANCELLED": "was cancelled",
    "TIMEOUT": "reached its time limit before it could save; raise launcher.slurm.{kind}.time or .notice_seconds",
    "OUT_OF_MEMORY": "was ended for memory; raise launcher.slurm.{kind}.memory",
    "NODE_FAIL": "lost its node and was not requeued",
    "DEADLINE": "reached its deadline",
    "BOOT_FAIL": "could not start: a node did not boot",
}

_WAITS = {
    "Dependency": "after the job before",
    "Priority": "others go first",
    "Resources": "no nodes are free",
    "BeginTime": "just requeued",
    "JobHeldUser": "held: scontrol release {job_id}",
    "JobHeldAdmin": "held by an administrator",
}


@dataclass(frozen=True, kw_only=True)
class FollowedJob:
    """A job of a chain and what is known of it."""

    job: Submitted
    tasks: list[Task]
    """As Slurm has them; empty when it has forgotten the job or does not answer."""
    reasons: list[str]
    """Why it gave up: one a task that did."""
    before: str
    """How the start before this one ended, if one did."""
    logs: str
    """Where its logs stand, as a pattern."""

    @property
    def live(self) -> list[Task]:
        return [task for task in self.tasks if task.is_live]

    @property
    def running(self) -> list[Task]:
        return [task for task in self.live if task.state != "PENDING"]

    @property
    def nodes(self) -> str:
        return ",".join(sorted({task.nodes for task in self.running if task.nodes}))

    @property
    def waits_because(self) -> str:
        reason = next((task.reason for task in self.live if task.state == "PENDING" and task.reason), "")
        return _WAITS.get(reason, reason).format(job_id=self.job.job_id)


@dataclass(frozen=True, kw_only=True)
class FollowedChain:
    """A chain and what is known of its jobs."""

    jobs: list[FollowedJob]
    trouble: str
    """Why Slurm could not be asked; empty when it answered."""

    def job_of(self, step: Step) -> FollowedJob | None:
        """The job that does a step: of several, the first that is not over."""
        own = [item for item in self.jobs if [step.stage, step.iteration] in item.job.steps]
        return next((item for item in own if item.live), own[-1] if own else None)

    @property
    def is_live(self) -> bool:
        return any(item.live for item in self.jobs)


def follow_chain(folder: RunFolder) -> FollowedChain | None:
    """The last submission of a run; None if there was none."""
    chain = read_chain(folder)
    if chain is None:
        return None
    trouble = ""
    tasks: list[Task] = []
    try:
        tasks = look_up(chain.job_ids)
    except MachineError as error:
        trouble = str(error)
    return FollowedChain(jobs=_follow_jobs(chain, folder, tasks), trouble=trouble)


def _follow_jobs(chain: Chain, folder: RunFolder, tasks: Iterable[Task]) -> list[FollowedJob]:
    tasks = list(tasks)
    return [
        FollowedJob(
            job=job,
            tasks=[task for task in tasks if task.job_id == job.job_id],
            reasons=[_read(path) for path in _state_files(folder, job, "reason")],
            before=next((_read(path) for path in _state_files(folder, job, "last")), ""),
            logs=str(folder.slurm.logs / f"{job.name}.{job.job_id}*.log"),
        )
        for job in chain.jobs
    ]


def _state_files(folder: RunFolder, job: Submitted, name: str) -> list[Path]:
    state = folder.slurm.state(job.name)
    return sorted(state.parent.glob(f"{state.name}.*/{name}" if job.shards else f"{state.name}/{name}"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def explain_stop(chain: FollowedChain, open_steps: Iterable[Step], root: Path) -> str:
    """Why the chain cannot do the steps that are left, in words; empty while it can."""
    is_left = {(step.stage, step.iteration) for step in open_steps}
    for item in chain.jobs:
        if not any((stage, iteration) in is_left for stage, iteration in item.job.steps):
            continue
        title = f"{item.job.name} (job {item.job.job_id})"
        if item.reasons:
            more = f" (and {len(item.reasons) - 1} more shards)" if len(item.reasons) > 1 else ""
            return f"{title} {item.reasons[0]}{more}"
        if item.live or chain.trouble:
            return ""
        if how := _explain_end(item, root):
            return f"{title} {how}"
    return ""


def _explain_end(item: FollowedJob, root: Path) -> str:
    """How a job that is over ended; empty when all went well."""
    states = {task.state for task in item.tasks}
    if not states:
        return f"is gone from Slurm's memory and left no reason; see {item.logs}"
    for state, words in _ENDS.items():
        if state in states:
            return words.format(kind=item.job.kind)
    if states == {"COMPLETED"}:
        return ""
    if shutil.disk_usage(root).free < _NO_SPACE_BYTES:
        return f"ended with a failure, and the disk of {root} is full; free some space"
    return f"ended with a failure and left no reason; see {item.logs}"
