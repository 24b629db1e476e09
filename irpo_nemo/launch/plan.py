"""`irpo plan` on the terminal."""

from irpo_nemo.artifacts import read_manifest
from irpo_nemo.config import IRPOConfig
from irpo_nemo.launch.display import print_table, summarize
from irpo_nemo.pipeline import Step


def print_plan(config: IRPOConfig, steps: list[Step]) -> None:
    """The steps of a run, what each takes, and its state."""
    rows = [
        (step.title, str(step.ranks), step.state, step.reason if step.state != "done" else describe_done(step))
        for step in steps
    ]
    print_table(("step", "processes", "state", ""), rows, title=f"{config.run_folder}: {count_done(steps)}")


def describe_done(step: Step) -> str:
    """What a finished step counted."""
    manifest = read_manifest(step.manifest)
    return summarize(manifest) if manifest else ""


def count_done(steps: list[Step]) -> str:
    """How many steps are done, in words."""
    done = sum(step.state == "done" for step in steps)
    return f"{done} of {len(steps)} steps are done" if done < len(steps) else f"all {done} steps are done"
