"""The user's own problems: JSON lines with "question" and "answer", and optionally "solution" and "id".

The solution is a worked one; "Final answer: ..." is added to it when it does not end so.
"""

from dataclasses import replace

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import DataError
from irpo_nemo.grading import GRADERS
from irpo_nemo.records import Problem
from irpo_nemo.tasks.gsm8k import PROMPT_TEMPLATE
from irpo_nemo.tasks.problem_files import FileTask, Row, take_text


def make_jsonl_task(config: IRPOConfig) -> FileTask:
    """The task of the files that the configuration names, with its prompt template and grader."""
    grader = config.task.grader or "numeric"
    return FileTask(
        config=config.task,
        prompt_template=config.task.prompt_template or PROMPT_TEMPLATE,
        grader=grader,
        read_problem=lambda row: read_problem(row, grader),
    )


def read_problem(row: Row, grader: str) -> Problem:
    """Turn a row into a problem.

    Raises:
        DataError: A key is missing or empty, the gold answer is malformed, or the solution ends in another answer.
    """
    problem = Problem(
        problem_id=take_text(row, "id") if row.get("id") is not None else "",
        gold_answer=take_text(row, "answer"),
        question=take_text(row, "question"),
    )
    if row.get("solution") is None:
        return problem
    return replace(problem, solution=_complete(take_text(row, "solution"), problem, grader))


def _complete(solution: str, problem: Problem, grader: str) -> str:
    """Let `solution` end in the final answer, as a completion should."""
    answer = problem.gold_answer
    grade = GRADERS[grader].grade(problem, solution)
    if grade.layer != "final_answer":
        return f"{solution}\nFinal answer: {answer}"
    if grade.verdict != "correct":
        raise DataError(f"'solution' ends in the answer {grade.answer}, but 'answer' is {answer}. Mend one of them.")
    return solution
