"""Words, compared exactly but for case, white space and a trailing period.

The answer is the line of the last "Final answer:" (layer final_answer), or, when there is none or it says nothing, the
last line that is not empty (layer last_line).
"""

from irpo_nemo.errors import DataError
from irpo_nemo.grading.extract import cut_invented_question, find_final_answer
from irpo_nemo.grading.grade import Grade
from irpo_nemo.records import Problem, Verdict


def check_gold(problem: Problem) -> None:
    """Refuse an empty gold answer.

    Raises:
        DataError: It is empty.
    """
    if not normalize(problem.gold_answer):
        raise DataError(f"gold answer {problem.gold_answer!r} is empty; wanted some text.")


def grade(problem: Problem, completion_text: str) -> Grade:
    """Judge the text that `completion_text` gives as its answer.

    Raises:
        DataError: The gold answer is empty.
    """
    check_gold(problem)
    phrase, layer = _extract_text(completion_text)
    answer = normalize(phrase)
    if not answer:
        return Grade(answer=None, verdict="unparsable", layer=layer)
    return Grade(answer=answer, verdict="correct" if answer == normalize(problem.gold_answer) else "wrong", layer=layer)


def is_same(left: str, right: str) -> bool:
    """Whether two answers are the same text; their normal forms are unique."""
    return left == right


def _extract_text(completion_text: str) -> tuple[str, str]:
    text = cut_invented_question(completion_text)
    if (announced := find_final_answer(text)) is not None:
        line, text = announced
        if line:
            return line, "final_answer"
    lines = text.strip().split("\n")
    return (lines[-1], "last_line") if lines[-1] else ("", "none")


def normalize(text: str) -> str:
    """Fold case, collapse white space, and drop markdown emphasis around and a period at the end."""
    return " ".join(text.casefold().split()).strip("*` ").removesuffix(".").rstrip("*` ")


def golden_cases() -> list[tuple[Problem, str, Verdict]]:
    """Problems, completions and the verdicts they must get; a self-test of this machine."""
    paris = Problem(problem_id="", question="", gold_answer="Paris")
    return [
        (paris, "It lies on the Seine.\nFinal answer: **paris**.", "correct"),
        (paris, "Paris", "correct"),
        (paris, "Final answer: Paris, Texas", "wrong"),
        (paris, "  \n", "unparsable"),
    ]
