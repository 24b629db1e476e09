"""Submit a chain, once: scripts, code and configuration go to the run folder, the jobs to Slurm."""

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import irpo_nemo
from irpo_nemo.artifacts import explain_os_errors, publish_folder, read_json, write_json, write_text
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import config_root
from irpo_nemo.errors import ArtifactError, MachineError
from irpo_nemo.launch.local import open_run
from irpo_nemo.launch.lock import hold_lock
from irpo_nemo.launch.slurm import queue
from irpo_nemo.launch.slurm.chain import Job, make_chain
from irpo_nemo.launch.slurm.scripts import render_script, template_root
from irpo_nemo.pipeline import plan, refuse_changes
from irpo_nemo.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job of a chain as chain.json has it."""

    name: str
    kind: str
    steps: list[list[Any]]
    """(stage, iteration) of each."""
    shards: int
    """Tasks of its array; 0 when it is none."""
    job_id: int


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The last submission of a run."""

    submitted_at: float
    """Seconds since 1970."""
    is_whole: bool
    """Whether all of its jobs were submitted."""
    jobs: list[Submitted]

    @property
    def job_ids(self) -> list[int]:
        return [job.job_id for job in self.jobs]


def run_on_slurm(config: IRPOConfig) -> bool:
    """Submit what is left of a run and return; False when nothing is left.

    Raises:
        MachineError: Slurm cannot be asked, or refuses a job.
        IRPOError: As for a local run.
    """
    steps = plan(config)
    refuse_changes(config, steps)
    jobs = make_chain(config, steps)
    if not jobs:
        return False
    folder = RunFolder(config.run_folder.absolute())
    queue.require_slurm()
    with hold_lock(folder.lock):
        if live := find_live_jobs(folder):
            print(f"{config.run_folder}: is at work already: {_count(live)}. See: irpo status {config.run_folder}")
            return True
        _write_run(config, jobs, folder)
        chain = _submit(jobs, folder)
    print(describe_chain(config, jobs, job_ids=chain.job_ids))
    print(f"follow it: irpo status --watch {config.run_folder}    end it: irpo cancel {config.run_folder}")
    return True


def show_chain(config: IRPOConfig) -> None:
    """Print the scripts and dependencies of what is left; write and submit nothing."""
    steps = plan(config)
    refuse_changes(config, steps)
    jobs = make_chain(config, steps)
    for job in jobs:
        folder = RunFolder(config.run_folder.absolute())
        print(f"# ---- {folder.slurm.script(job.name)}")
        print(render_script(config, job, working_directory=Path.cwd()))
    print(describe_chain(config, jobs, job_ids=[]))


def describe_chain(config: IRPOConfig, jobs: list[Job], *, job_ids: list[int]) -> str:
    """The jobs, and what each waits for, by their names or, once they are known, their ids."""
    lines = [f"{config.run_folder}: {len(jobs)} jobs, each after the one before has ended well"]
    for index, job in enumerate(jobs):
        name = f"{job_ids[index]}  {job.name}" if job_ids else job.name
        after = f"  after {job_ids[index - 1] if job_ids else jobs[index - 1].name}" if index else ""
        lines.append(f"  {name}  {job.title}{after}")
    return "\n".join(lines)


def read_chain(folder: RunFolder) -> Chain | None:
    """The last submission; None if there was none."""
    if not folder.slurm.chain.exists():
        return None
    value = read_json(folder.slurm.chain)
    return Chain(**{**value, "jobs": [Submitted(**job) for job in value["jobs"]]})


def find_live_jobs(folder: RunFolder) -> list[queue.Task]:
    """Jobs of the last submission that wait or run. What an unfinished submission left is cancelled first."""
    chain = read_chain(folder)
    if chain is None or not chain.jobs:
        return []
    live = [task for task in queue.look_up(chain.job_ids) if task.is_live]
    if live and not chain.is_whole:
        queue.cancel(sorted({task.job_id for task in live}))
        return []
    return live


def refuse_live_jobs(folder: RunFolder) -> None:
    """Keep a local run from the folder of a chain at work.

    Raises:
        ArtifactError: Jobs wait or run.
    """
    if live := find_live_jobs(folder):
        raise ArtifactError(
            f"{folder.root}: Slurm is at work on this run: {_count(live)}. Wait for them, or irpo cancel {folder.root}"
        )


def cancel_chain(folder: RunFolder) -> int:
    """End every job of the last submission that waits or runs; how many lines of the queue that were."""
    live = find_live_jobs(folder)
    if live:
        queue.cancel(sorted({task.job_id for task in live}, reverse=True))
    return len(live)


def _count(live: list[queue.Task]) -> str:
    ids = sorted({task.job_id for task in live})
    return f"job {ids[0]}" if len(ids) == 1 else f"jobs {ids[0]} to {ids[-1]}"


def _write_run(config: IRPOConfig, jobs: list[Job], folder: RunFolder) -> None:
    """Everything that the jobs read; of an earlier submission, only its logs stay."""
    open_run(config, folder)
    with explain_os_errors(folder.slurm.root):
        _copy_code(folder.slurm.code)
        for path in folder.slurm.root.glob("state/*/*"):
            if path.name != "lease":  # a process that Slurm has lost may still follow it
                path.unlink()
        for path in folder.slurm.root.glob("*.sbatch"):
            path.unlink()
        folder.slurm.logs.mkdir(parents=True, exist_ok=True)
    write_text(folder.slurm.root / "supervise.sh", (template_root() / "supervise.sh").read_text(encoding="utf-8"))
    for job in jobs:
        write_text(folder.slurm.script(job.name), render_script(config, job, working_directory=Path.cwd()))


def _copy_code(target: Path) -> None:
    """The package, so that what is edited later does not reach jobs that wait."""
    package = Path(irpo_nemo.__file__).resolve().parent
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(package, temporary / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for extra in (config_root(), template_root()):
        if package not in extra.parents:
            shutil.copytree(extra, temporary / extra.name)
    # Not `python -m irpo_nemo`, which would take the package of the working directory.
    (temporary / "irpo.py").write_text("from irpo_nemo.cli import main\n\nraise SystemExit(main())\n", encoding="utf-8")
    publish_folder(temporary, target)


def _submit(jobs: list[Job], folder: RunFolder) -> Chain:
    chain = Chain(submitted_at=time.time(), is_whole=False, jobs=[])
    try:
        for job in jobs:
            after = chain.job_ids[-1] if chain.jobs else None
            job_id = queue.submit(folder.slurm.script(job.name), after=after)
            submitted = Submitted(
                name=job.name,
                kind=job.kind,
                steps=[[step.stage, step.iteration] for step in job.steps],
                shards=len(job.shards),
                job_id=job_id,
            )
            chain = dataclasses.replace(chain, jobs=[*chain.jobs, submitted], is_whole=len(chain.jobs) + 1 == len(jobs))
            write_json(folder.slurm.chain, dataclasses.asdict(chain))
    except MachineError:
        if chain.jobs:
            queue.cancel(chain.job_ids[::-1])
        raise
    return chain
