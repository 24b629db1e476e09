"""Which of a problem's answers mean the same, so that 1/2 and 0.5 vote together.

Correct answers are one class: each equals the gold answer. A wrong answer joins the class of the first earlier wrong
answer that the grader calls the same, so the classes follow from the order of the samples alone. Answers that cannot
be compared within the deadline differ. A class is named by the place of its first member.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from irpo_nemo.grading.grade import Grade

AnswerPair = tuple[str, str]


def find_classes(
    problems: Sequence[Sequence[Grade]], compare: Callable[[Iterable[AnswerPair]], Iterator[bool]]
) -> list[list[int | None]]:
    """The class of each sample of each problem; None for one that does not vote, unparsable or an error.

    Args:
        problems: The grades of each problem's samples.
        compare: Says of pairs of answers, in order, whether they mean the same.
    """
    wrong_answers = [_distinct(grade.answer for grade in grades if grade.verdict == "wrong") for grades in problems]
    verdicts = compare(pair for answers in wrong_answers for pair in itertools.combinations(answers, 2))
    classes = []
    for grades, answers in zip(problems, wrong_answers, strict=True):
        same = {pair for pair in itertools.combinations(answers, 2) if next(verdicts)}
        classes.append(_name_classes(grades, _choose_representatives(answers, same)))
    return classes


def _distinct(answers: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(answer for answer in answers if answer is not None))


def _choose_representatives(answers: Sequence[str], same: set[AnswerPair]) -> dict[str, str]:
    """For each answer the one that stands for its class."""
    representatives: dict[str, str] = {}
    for later in answers:
        earlier = next((answer for answer in representatives if (answer, later) in same), None)
        representatives[later] = later if earlier is None else representatives[earlier]
    return representatives


def _name_classes(grades: Sequence[Grade], representatives: dict[str, str]) -> list[int | None]:
    names: dict[str | None, int] = {}
    classes: list[int | None] = []
    for index, grade in enumerate(grades):
        if grade.verdict == "correct":
            classes.append(names.setdefault(None, index))
        elif grade.verdict == "wrong" and grade.answer is not None:
            classes.append(names.setdefault(representatives[grade.answer], index))
        else:
            classes.append(None)
    return classes
