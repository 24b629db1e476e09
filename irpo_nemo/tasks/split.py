"""Which training problems are held out. Decided by hashes of the questions, so the order of a file plays no part."""

import hashlib
from collections.abc import Sequence

from irpo_nemo.errors import DataError
from irpo_nemo.records import Problem


def shuffle_by_question(problems: Sequence[Problem], *, salt: str) -> list[Problem]:
    """The problems in an order that only `salt` and the questions decide."""
    return sorted(problems, key=lambda problem: hashlib.sha256(f"{salt}\0{problem.question}".encode()).digest())


def hold_out(problems: Sequence[Problem], count: int, *, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Split into training and development problems, both in their old order.

    A question that is asked twice never stands on both sides: what has a development question leaves the training set.

    Raises:
        DataError: No training problem would be left.
    """
    chosen = {problem.problem_id for problem in shuffle_by_question(problems, salt=f"{seed}/dev")[:count]}
    dev = [problem for problem in problems if problem.problem_id in chosen]
    rest = without_questions_of(problems, dev)
    if not rest:
        raise DataError(
            f"task.num_dev_problems: is {count}, but there are only {len(problems)} training problems to take them "
            "from. Lower it."
        )
    return rest, dev


def without_questions_of(problems: Sequence[Problem], others: Sequence[Problem]) -> list[Problem]:
    """The problems whose question none of `others` asks."""
    taken = {other.question for other in others}
    return [problem for problem in problems if problem.question not in taken]
