"""ARC: grade-school science questions with 3 to 5 options (Clark et al. 2018, arXiv 1803.05457), without solutions.

Two layouts are read: AllenAI's own, {"id", "question": {"stem", "choices": [{"text", "label"}, ...]}, "answerKey"}, and
the flat one of the Hugging Face hub, {"id", "question", "choices": {"text": [...], "label": [...]}, "answerKey"}. The
training set may be ARC-Challenge alone or, with task.extra_train_paths, ARC-Easy as well. The prompt is the IRPO
paper's, appendix B.1. It asks for a letter, so a question labelled 1, 2, 3, 4 (one in 50) is shown, and graded, as
A, B, C, D.
"""

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import DataError
from irpo_nemo.records import Problem
from irpo_nemo.tasks.file_task import FileTask, make_paper_prompt
from irpo_nemo.tasks.rows import Row, show_choices, take_choices, take_optional_text, take_text

PROMPT_TEMPLATE = make_paper_prompt('conclude using the format "Final answer: (insert letter here)"')

_LETTERS = "ABCDEFGHIJ"


def make_arc_challenge_task(config: IRPOConfig) -> FileTask:
    """ARC-Challenge from the files, or the Hugging Face data set, that the configuration names."""
    return FileTask(
        config=config,
        prompt_template=PROMPT_TEMPLATE,
        grader="choice",
        read_problem=read_problem,
        subset="ARC-Challenge",
    )


def read_problem(row: Row) -> Problem:
    """Turn a published row, of either layout, into a problem.

    Raises:
        DataError: A key is missing or empty, or the key is no label.
    """
    inner = row.get("question")
    question = {"question": inner.get("stem"), "choices": inner.get("choices")} if isinstance(inner, dict) else row
    labels, texts = take_choices(question)
    gold = take_text(row, "answerKey")
    if gold not in labels:
        raise DataError(f"'answerKey' is {gold!r}, but the labels are {', '.join(labels)}. Mend one of them.")
    letters = list(_LETTERS[: len(labels)]) if all(label.isdigit() for label in labels) else labels
    return Problem(
        problem_id=take_optional_text(row, "id") or "",
        question=show_choices(take_text(question, "question"), letters, texts),
        gold_answer=letters[labels.index(gold)],
        choice_labels=letters,
        choices=texts,
    )
