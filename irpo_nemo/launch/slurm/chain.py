"""The jobs that do what is left of a plan, one after the other. Knows steps and names; nothing of Slurm itself."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from irpo_nemo.artifacts import part_path
from irpo_nemo.config import IRPOConfig, SlurmJobConfig
from irpo_nemo.pipeline import EVALUATION_SPLIT, TRAINING_SPLIT, Kind, Step, splits_of
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.tasks import load_task


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submission: stages that need the same kind of place, in order; or an array of shards of one stage."""

    name: str
    kind: Kind
    steps: tuple[Step, ...]
    shards: tuple[int, ...] = ()
    """Which tasks of the array; empty for a job that does whole stages."""

    @property
    def title(self) -> str:
        stages = ", ".join(step.title for step in self.steps)
        return f"{stages}: {len(self.shards)} shards" if self.shards else stages


def make_chain(config: IRPOConfig, steps: Iterable[Step]) -> list[Job]:
    """The jobs for the steps that are not done; each waits for the one before.

    A stage with shards becomes an array of them, and the stage itself, which then only checks that all is there, goes
    to the next job without an engine. Neighbours that need neither sampler nor trainer share a job.
    """
    jobs: list[Job] = []
    light: list[Step] = []

    def flush() -> None:
        if light:
            names = [step.log_name for step in light if step.kind == "cpu"]
            jobs.append(Job(name=(names or [f"{light[0].log_name}_check"])[0], kind="cpu", steps=tuple(light)))
            light.clear()

    for step in (step for step in steps if step.state != "done"):
        if step.kind == "cpu":
            light.append(step)
            continue
        flush()
        if step.has_shards and config.launcher.slurm.shards > 1:
            if shards := tuple(_open_shards(config, step)):
                jobs.append(Job(name=step.log_name, kind="sampler", steps=(step,), shards=shards))
            light.append(step)
        else:
            jobs.append(Job(name=step.log_name, kind=step.kind, steps=(step,)))
    flush()
    return jobs


def _open_shards(config: IRPOConfig, step: Step) -> Iterator[int]:
    """The shards that have parts to draw; all of them unless the stage was begun."""
    count = config.launcher.slurm.shards
    if step.state != "ready" or not step.ticket.exists():
        yield from range(count)
        return
    assert step.iteration is not None, "sampling belongs to an iteration"
    folder, task = RunFolder(config.run_folder).iteration(step.iteration), load_task(config)
    problems = {TRAINING_SPLIT: task.train_problems, EVALUATION_SPLIT: task.test_problems}
    missing = {
        number % count
        for split in splits_of(config, step.iteration)
        for number in range(math.ceil(len(problems[split]()) / config.sampler.problems_per_part))
        if not part_path(folder.samples(split), number).exists()
    }
    yield from sorted(missing)


def options_of(config: IRPOConfig, kind: Kind) -> SlurmJobConfig:
    """What a kind of job asks for."""
    slurm = config.launcher.slurm
    return {"sampler": slurm.sampler, "trainer": slurm.trainer, "cpu": slurm.cpu}[kind]


def nodes_of(config: IRPOConfig, kind: Kind) -> int:
    return config.launcher.slurm.trainer.nodes if kind == "trainer" else 1
