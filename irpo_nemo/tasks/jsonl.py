"""The user's own problems, as JSON lines.

A row has "question" and "answer", and optionally "id", "solution", "choices", "level" and "subject". The solution is a
worked one; "Final answer: ..." is added to it when it does not end so. Choices are shown under the question, one a
line, and the answer is a label or an option's text; task.grader=choice grades them.
"""

from dataclasses import replace

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import DataError
from irpo_nemo.grading import GRADERS
from irpo_nemo.records import Problem
from irpo_nemo.tasks.file_task import FileTask
from irpo_nemo.tasks.gsm8k import PROMPT_TEMPLATE
from irpo_nemo.tasks.rows import Row, show_choices, take_choices, take_optional_text, take_text


def make_jsonl_task(config: IRPOConfig) -> FileTask:
    """The task of the files that the configuration names, with its prompt template and grader."""
    grader = config.task.grader or "numeric"
    return FileTask(
        config=config,
        prompt_template=PROMPT_TEMPLATE,
        grader=grader,
        read_problem=lambda row: read_problem(row, grader),
    )


def read_problem(row: Row, grader: str) -> Problem:
    """Turn a row into a problem.

    Raises:
        DataError: A key is missing or empty, the gold answer is malformed, or the solution ends in another answer.
    """
    answer, question = take_text(row, "answer"), take_text(row, "question")
    labels, texts = take_choices(row) if row.get("choices") is not None else ([], [])
    if grader == "choice" and not labels:
        raise DataError("has no 'choices', but task.grader=choice needs them. Add them, or choose another grader.")
    problem = Problem(
        problem_id=take_optional_text(row, "id") or "",
        question=show_choices(question, labels, texts),
        gold_answer=answer,
        choice_labels=labels,
        choices=texts,
        level=take_optional_text(row, "level"),
        subject=take_optional_text(row, "subject"),
    )
    if row.get("solution") is None:
        return problem
    return replace(problem, solution=_complete(take_text(row, "solution"), problem, grader))


def _complete(solution: str, problem: Problem, grader: str) -> str:
    """Let `solution` end in the final answer, as a completion should."""
    answer = problem.gold_answer
    grade = GRADERS[grader].grade(problem, solution)
    if not grade.layer.startswith("final_answer"):
        return f"{solution}\nFinal answer: {answer}"
    if grade.verdict != "correct":
        raise DataError(f"'solution' ends in the answer {grade.answer}, but 'answer' is {answer}. Mend one of them.")
    return solution
