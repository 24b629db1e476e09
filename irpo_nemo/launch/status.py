"""`irpo status` on the terminal."""

from irpo_nemo.artifacts import read_json
from irpo_nemo.config import IRPOConfig
from irpo_nemo.launch.children import failure_path
from irpo_nemo.launch.display import print_table
from irpo_nemo.launch.lock import is_locked
from irpo_nemo.launch.plan import count_done, describe_done
from irpo_nemo.launch.progress import read_last_metrics, read_progress
from irpo_nemo.pipeline import Step, plan
from irpo_nemo.run_folder import RunFolder, TrainFolder


def print_status(config: IRPOConfig) -> None:
    """How far an existing run has come, and why it stopped if it did."""
    steps = plan(config)
    is_running = is_locked(RunFolder(config.run_folder).lock)
    current = next((step for step in steps if step.state != "done"), None)
    rows = []
    for step in steps:
        state: str = step.state
        about = step.reason
        if step.state == "done":
            about = describe_done(step)
        elif step is current:
            state, about = _examine_current(config, step, is_running)
        rows.append((step.title, state, about))
    print_table(("step", "state", ""), rows, title=f"{config.run_folder}: {count_done(steps)}")
    _print_last_metrics(config, steps)


def _examine_current(config: IRPOConfig, step: Step, is_running: bool) -> tuple[str, str]:
    """State and explanation of the first step that is not done."""
    progress = str(read_progress(config, step) or "") if step.ticket.exists() else step.reason
    if is_running:
        return "running", progress
    if failure := _read_failure(RunFolder(config.run_folder), step):
        return "failed", failure
    return ("interrupted", progress) if step.ticket.exists() else (step.state, step.reason)


def _read_failure(folder: RunFolder, step: Step) -> str | None:
    """The last line of the reason for which the step failed, if it did."""
    path = failure_path(folder.log(step.log_name))
    return str(read_json(path)["message"]).strip().splitlines()[-1] if path.exists() else None


def _print_last_metrics(config: IRPOConfig, steps: list[Step]) -> None:
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
            shown = ", ".join(f"{name} {_short(value)}" for name, value in metrics.items() if value is not None)
            print(f"last metrics ({title}): {shown}")
            return


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
