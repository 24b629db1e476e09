"""Problems that only their gold answer matters of."""

from irpo_nemo.records import Problem


def gold_problem(gold_answer: str) -> Problem:
    return Problem(problem_id="", question="", gold_answer=gold_answer)
