"""What a grader is, and what it says of one completion."""

from dataclasses import dataclass
from typing import Protocol

from irpo_nemo.records import Problem, Verdict


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The verdict on one completion."""

    answer: str | None
    """The extracted answer in normal form. None when none could be read."""
    verdict: Verdict
    layer: str
    """Which rule found the answer or decided, or "none". Of an error: "deadline", "memory", "crash" or "length"."""


class Grader(Protocol):
    """Compares the answer of a completion with a problem's gold answer. The modules of this package are graders.

    Only `gold_answer`, `choice_labels` and `choices` of a problem matter to them.
    """

    def check_gold(self, problem: Problem) -> None:
        """Refuse a gold answer that this grader cannot compare with.

        Raises:
            DataError: It is malformed.
        """

    def grade(self, problem: Problem, completion_text: str) -> Grade:
        """Judge one completion.

        Raises:
            DataError: The gold answer is malformed.
        """

    def is_same(self, left: str, right: str) -> bool:
        """Whether two answers, each the `answer` of a Grade, mean the same; for majority votes."""

    def golden_cases(self) -> list[tuple[Problem, str, Verdict]]:
        """Problems, completions and the verdicts they must get, for the self-test before any grading."""
