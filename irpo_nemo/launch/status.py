"""`irpo status`: how far a run has come, where it is at work, and why it stopped if it did. Needs no torch."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from typing import Any

from irpo_nemo.artifacts import read_json, read_manifest
from irpo_nemo.config import IRPOConfig
from irpo_nemo.launch.children import failure_path
from irpo_nemo.launch.display import clear_screen, print_table
from irpo_nemo.launch.lock import is_locked
from irpo_nemo.launch.plan import count_done, describe_done
from irpo_nemo.launch.progress import describe_duration, read_last_metrics, read_progress
from irpo_nemo.launch.slurm.follow import FollowedChain, FollowedJob, explain_stop, follow_chain
from irpo_nemo.pipeline import Step, plan
from irpo_nemo.run_folder import RunFolder, TrainFolder

_WATCH_SECONDS = 5.0


@dataclass(kw_only=True)
class StepStatus:
    """One stage of one iteration."""

    stage: str
    iteration: int | None
    state: str
    """done, running, queued, failed, interrupted, stale, ready or waiting."""
    about: str
    """What it counted, how far it is, or why it is not done."""
    done: int | None = None
    total: int | None = None
    unit: str = ""
    """Of done and total, where there is something to count."""
    seconds_left: float | None = None
    """From the speed measured so far."""
    job_id: int | None = None
    nodes: str = ""
    logs: str = ""

    @property
    def title(self) -> str:
        return self.stage if self.iteration is None else f"iteration {self.iteration} {self.stage}"


@dataclass(kw_only=True)
class RunStatus:
    """A whole run."""

    run: str
    summary: str
    steps: list[StepStatus]
    stopped: str
    """Why it cannot go on; empty when it can, or is done."""
    slurm_trouble: str
    """Why Slurm could not be asked."""
    seconds_left: float | None
    """Of the run, should the coming iterations take as long as the last one."""
    last_metrics_of: str
    last_metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return bool(self.stopped) or all(step.state == "done" for step in self.steps)


def read_status(config: IRPOConfig) -> RunStatus:
    """Look at the manifests, at the files of the stage at work, and at Slurm if the run was submitted there."""
    steps = plan(config)
    folder = RunFolder(config.run_folder.absolute())
    chain = follow_chain(folder)
    is_local = is_locked(folder.lock)
    current = next((step for step in steps if step.state != "done"), None)
    statuses = [
        _examine(config, step, chain, is_current=step is current, is_local=is_local and step is current)
        for step in steps
    ]
    open_steps = [step for step in steps if step.state != "done"]
    stopped = explain_stop(chain, open_steps, folder.root) if chain and open_steps and not is_local else ""
    of, metrics = _find_last_metrics(config, steps)
    return RunStatus(
        run=str(config.run_folder),
        summary=count_done(steps),
        steps=statuses,
        stopped=stopped,
        slurm_trouble=chain.trouble if chain and open_steps else "",
        seconds_left=_estimate(steps, statuses) if open_steps else None,
        last_metrics_of=of,
        last_metrics=metrics,
    )


def print_status(config: IRPOConfig, *, as_json: bool = False, watch: bool = False) -> None:
    """Print the status once, or, to watch it, until the run is over."""
    while True:
        status = read_status(config)
        if as_json:
            print(json.dumps(dataclasses.asdict(status)), flush=True)
        else:
            _print(status, clear=watch)
        if not watch or status.is_over:
            return
        time.sleep(_WATCH_SECONDS)


def _examine(
    config: IRPOConfig, step: Step, chain: FollowedChain | None, *, is_current: bool, is_local: bool
) -> StepStatus:
    status = StepStatus(stage=step.stage, iteration=step.iteration, state=step.state, about=step.reason)
    if step.state == "done":
        status.about = describe_done(step)
        return status
    item = chain.job_of(step) if chain else None
    if item is not None:
        status.job_id, status.logs = item.job.job_id, item.logs
    if is_current:
        _add_progress(status, config, step)
    if is_local:
        status.state = "running"
    elif item is not None and item.live:
        _add_queue(status, item, is_current=is_current)
    elif is_current and (failure := _read_failure(RunFolder(config.run_folder), step)) and item is None:
        status.state, status.about = "failed", failure
    elif is_current and item is not None and item.reasons:
        status.state = "failed"
    elif is_current and step.ticket.exists():
        status.state = "interrupted"
    return status


def _add_progress(status: StepStatus, config: IRPOConfig, step: Step) -> None:
    progress = read_progress(config, step) if step.ticket.exists() else None
    if progress is None:
        return
    status.about = str(progress)
    status.done, status.total, status.unit = progress.done, progress.total, progress.unit
    status.seconds_left = progress.seconds_left


def _add_queue(status: StepStatus, item: FollowedJob, *, is_current: bool) -> None:
    if item.running and is_current:
        status.state, status.nodes = "running", item.nodes
        waiting = any(task.state == "PENDING" for task in item.live)
        words = [status.about, "more tasks wait" if waiting else ""]
    else:
        status.state = "queued"
        words = [status.about if is_current else "", item.waits_because]
    if item.before and is_current:
        words.append(f"the start before: {item.before}")
    status.about = "; ".join(word for word in words if word)


def _estimate(steps: list[Step], statuses: list[StepStatus]) -> float | None:
    """Seconds that are left of the run, each step like the last of its stage; None while a stage has never run."""
    seconds: dict[str, float] = {}
    left = 0.0
    for step, status in zip(steps, statuses, strict=True):
        if step.state == "done" and (manifest := read_manifest(step.manifest)):
            seconds[step.stage] = manifest.seconds["total"]
        elif status.seconds_left is not None:
            left += status.seconds_left
        elif step.stage in seconds:
            left += seconds[step.stage]
        elif step.stage != "report":
            return None
    return left


def _read_failure(folder: RunFolder, step: Step) -> str | None:
    """The last line of the reason for which the step failed, if it did."""
    path = failure_path(folder.log(step.log_name))
    return str(read_json(path)["message"]).strip().splitlines()[-1] if path.exists() else None


def _find_last_metrics(config: IRPOConfig, steps: list[Step]) -> tuple[str, dict[str, Any]]:
    """Of the last training run that made a step: its title, and the metrics of its last step."""
    folder = RunFolder(config.run_folder)
    trained: list[tuple[str, TrainFolder]] = []
    for step in steps:
        if step.stage == "sft":
            trained.append((step.title, folder.model_zero.train))
        if step.stage == "trial" and step.iteration is not None:
            trained.append((step.title, folder.iteration(step.iteration).trial.train))
        if step.stage == "train" and step.iteration is not None:
            trained.append((step.title, folder.iteration(step.iteration).train))
    for title, train in reversed(trained):
        if metrics := read_last_metrics(train):
            return title, metrics
    return "", {}


def _print(status: RunStatus, *, clear: bool) -> None:
    if clear:
        clear_screen()
    has_jobs = any(step.job_id is not None for step in status.steps)
    columns = ("step", "state", "job", "nodes", "") if has_jobs else ("step", "state", "")
    rows = []
    for step in status.steps:
        place = (str(step.job_id or ""), step.nodes) if has_jobs else ()
        rows.append((step.title, step.state, *place, step.about))
    print_table(columns, rows, title=f"{status.run}: {status.summary}")
    if status.last_metrics:
        shown = [f"{name} {_short(value)}" for name, value in status.last_metrics.items() if value is not None]
        print(f"last metrics ({status.last_metrics_of}): {', '.join(shown)}")
    if status.seconds_left:
        print(f"about {describe_duration(status.seconds_left)} left, if the rest takes as long as what was measured")
    if logs := next((step.logs for step in status.steps if step.state in ("running", "failed", "interrupted")), ""):
        print(f"logs: {logs}")
    if status.slurm_trouble:
        print(f"Slurm does not answer: {status.slurm_trouble}")
    if status.stopped:
        print(f"stopped: {status.stopped}")
        print("the same `irpo run` goes on from here")


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
