"""What a grader is, and what it says of one completion."""

from dataclasses import dataclass
from typing import Protocol

from irpo_nemo.records import Verdict


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The verdict on one completion."""

    answer: str | None
    """The extracted answer in normal form: equal answers are equal strings. None when none could be read."""
    verdict: Verdict
    layer: str
    """Which rule found the answer, or "none"."""


class Grader(Protocol):
    """Compares the answer of a completion with the gold answer. The modules of this package are graders."""

    def check_gold(self, gold_answer: str) -> None:
        """Refuse a gold answer that this grader cannot compare with.

        Raises:
            DataError: It is malformed.
        """

    def grade(self, gold_answer: str, completion_text: str) -> Grade:
        """Judge one completion.

        Raises:
            DataError: The gold answer is malformed.
        """
