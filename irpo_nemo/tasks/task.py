"""What a task is: problems, their prompt, and how answers are judged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from irpo_nemo.records import Problem


class Task(Protocol):
    """Problems, prompt and grader. Everything is deterministic: two calls give the same."""

    @property
    def grader(self) -> str:
        """The name of the grader, a key of `irpo_nemo.grading.GRADERS`."""

    def train_problems(self) -> list[Problem]:
        """The problems that candidates are sampled for.

        Raises:
            DataError: The file is missing or a row of it makes no sense.
        """

    def dev_problems(self) -> list[Problem]:
        """Training problems that are held out, or the data's own development set; none unless asked for.

        Raises:
            DataError: The file is missing or a row of it makes no sense.
        """

    def test_problems(self) -> list[Problem]:
        """The problems that each M_t is measured on: the test set, or with task.evaluate_on=dev the development set.

        Raises:
            DataError: The file is missing or a row of it makes no sense.
        """

    def prompt(self, problem: Problem) -> str:
        """The text that the model continues."""

    def demonstrations(self) -> Iterator[tuple[str, str]]:
        """Prompt and completion texts for the supervised fine-tuning that makes M_0; none when the task has none."""

    def gold_completion(self, problem: Problem) -> str | None:
        """The worked solution as a completion of the prompt, final answer last; None when the data has none."""

    def data_files(self) -> list[Path]:
        """The local files and folders that the task reads, without reading them."""

    def data_sets(self) -> list[str]:
        """The Hugging Face data sets that the task reads, by name."""
