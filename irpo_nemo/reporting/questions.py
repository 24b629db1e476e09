"""What was asked: the problems' own texts, from the task, where its files are still there."""

import logging
import os

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import IRPOError
from irpo_nemo.records import Problem
from irpo_nemo.tasks import load_task

logger = logging.getLogger(__name__)


class Questions:
    """The problems of a split, and their prompts before any chat template; both empty when the task cannot be read."""

    def __init__(self, config: IRPOConfig, split: str) -> None:
        self.problems: dict[str, Problem] = {}
        self.prompts: dict[str, str] = {}
        try:
            task = load_task(config)
            problems = task.train_problems() if split == "train" else task.test_problems()
            self.prompts = {problem.problem_id: task.prompt(problem) for problem in problems}
            self.problems = {problem.problem_id: problem for problem in problems}
        except IRPOError as error:
            logger.warning("the questions of the %s problems cannot be shown: %s", split, error)
        self.before = os.path.commonprefix(list(self.prompts.values()))  # noqa: RUF071 - of texts, not of paths
        """How every prompt begins."""
        rests = [prompt[len(self.before) :][::-1] for prompt in self.prompts.values()]
        self.after = os.path.commonprefix(rests)[::-1]  # noqa: RUF071 - prefixes of texts, not of paths
        """How every prompt ends."""

    def own_prompt(self, problem_id: str) -> str | None:
        """What the problem's prompt says between `before` and `after`."""
        prompt = self.prompts.get(problem_id)
        return None if prompt is None else prompt[len(self.before) : len(prompt) - len(self.after)]
