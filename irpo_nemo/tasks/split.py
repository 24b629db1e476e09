"""Which training problems are held out. Decided by hashes of the questions, so the order of a file plays no part."""

import hashlib
from collections.abc import Sequence

from irpo_nemo.errors import DataError
from irpo_nemo.records import Problem


def shuffle_by_question(problems: Sequence[Problem], *, salt: str) -> list[Problem]:
    """The problems in an order that only `salt` and the questions decide."""
    return sorted(problems, key=lambda problem: hashlib.sha256(f"{salt}\0{problem.question}".encode()).digest())


def hold_out(problems: Sequence[Problem], count: int, *, salt: str, option: str) -> tuple[list[Problem], list[Problem]]:
    """Split into training and held-out problems, both in their old order.

    A question that is asked twice never stands on both sides: what has a held-out question leaves the training set.

    Args:
        problems: To be split.
        count: How many to hold out.
        salt: With the questions, decides which.
        option: The key that asks for `count`, for the message.

    Raises:
        DataError: No training problem would be left.
    """
    chosen = {problem.problem_id for problem in shuffle_by_question(problems, salt=salt)[:count]}
    held_out = [problem for problem in problems if problem.problem_id in chosen]
    rest = without_questions_of(problems, held_out)
    if not rest:
        raise DataError(
            f"{option}: is {count}, but there are only {len(problems)} training problems to take them from. Lower it."
        )
    return rest, held_out


def without_questions_of(problems: Sequence[Problem], others: Sequence[Problem]) -> list[Problem]:
    """The problems whose question none of `others` asks."""
    taken = {other.question for other in others}
    return [problem for problem in problems if problem.question not in taken]
