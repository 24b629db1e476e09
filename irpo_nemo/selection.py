"""For how many steps to train, found as the paper does: on training problems that a trial leaves out.

    pairs of the other problems ─► trial ─► a model every so many steps ─► the one that solves most held-out problems
    all pairs ─► trained for as many steps ─► M_t+1

Knows no files and no models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from irpo_nemo.config import IRPOConfig
from irpo_nemo.metrics import Interval
from irpo_nemo.records import Problem
from irpo_nemo.tasks import Task
from irpo_nemo.tasks.split import hold_out


@dataclass(frozen=True, kw_only=True)
class TriedModel:
    """One kept model of a trial, measured on the held-out problems."""

    step: int
    """Optimizer steps that it had taken."""
    accuracy: float
    """Of greedy decoding."""
    accuracy_ci95: Interval
    validation_loss: float | None
    """Of the held-out problems' pairs; None when they gave none."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How long M_t is to be trained, and why."""

    chosen_step: int
    trial_steps: int
    """Of the whole trial, over which its learning-rate schedule went."""
    num_problems: int
    """Held out."""
    tried: list[TriedModel]


def split_problems(config: IRPOConfig, task: Task) -> tuple[list[Problem], list[Problem]]:
    """The training problems that the trial learns from, and those that it leaves out: the same in every iteration.

    Raises:
        DataError: Nothing would be left to learn from.
    """
    return hold_out(
        task.train_problems(),
        config.selection.num_problems,
        salt=f"{config.seed}/selection",
        option="selection.num_problems",
    )


def choose_step(tried: Sequence[TriedModel]) -> int:
    """The step of the highest accuracy; of equally good ones the earliest."""
    return max(tried, key=lambda model: (model.accuracy, -model.step)).step
