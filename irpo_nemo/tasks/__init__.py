"""Tasks: problems + prompt + grader. Imports nothing heavy.

A new task is a file here and its line in `TASKS`.
"""

from collections.abc import Callable

from irpo_nemo.config import IRPOConfig
from irpo_nemo.tasks.arc_challenge import make_arc_challenge_task
from irpo_nemo.tasks.arithmetic import ArithmeticTask
from irpo_nemo.tasks.gsm8k import make_gsm8k_task
from irpo_nemo.tasks.hendrycks_math import make_hendrycks_math_task
from irpo_nemo.tasks.jsonl import make_jsonl_task
from irpo_nemo.tasks.task import Task

__all__ = ["TASKS", "Task", "load_task"]

TASKS: dict[str, Callable[[IRPOConfig], Task]] = {
    "arc_challenge": make_arc_challenge_task,
    "arithmetic": ArithmeticTask,
    "gsm8k": make_gsm8k_task,
    "hendrycks_math": make_hendrycks_math_task,
    "jsonl": make_jsonl_task,
}


def load_task(config: IRPOConfig) -> Task:
    """The task that `task.name` names. No file is read yet."""
    return TASKS[config.task.name](config)
