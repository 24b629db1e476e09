from collections.abc import Iterable, Iterator

from irpo_nemo.grading.classes import AnswerPair, find_classes
from irpo_nemo.grading.grade import Grade
from irpo_nemo.records import Verdict

CODES: dict[str, Verdict] = {"?": "unparsable", "!": "error"}


def make_grades(answers: str, *, gold: str = "a") -> list[Grade]:
    """Answers by letter: "?" is unparsable, "!" an error; small letters and capitals mean the same."""
    return [
        Grade(
            answer=None if letter in CODES else letter,
            verdict=CODES.get(letter) or ("correct" if letter.lower() == gold else "wrong"),
            layer="",
        )
        for letter in answers
    ]


def compare_letters(pairs: Iterable[AnswerPair]) -> Iterator[bool]:
    return (left.lower() == right.lower() for left, right in pairs)


def classes_of(*problems: str) -> list[list[int | None]]:
    return find_classes([make_grades(answers) for answers in problems], compare_letters)


def test_a_class_is_named_by_its_first_member() -> None:
    assert classes_of("bcBCb", "cba", "") == [[0, 1, 0, 1, 0], [0, 1, 2], []]


def test_correct_answers_are_one_class_without_being_compared() -> None:
    assert find_classes([make_grades("bAa")], lambda pairs: iter([False for _ in pairs])) == [[0, 1, 1]]


def test_what_cannot_be_read_has_no_class() -> None:
    assert classes_of("?b!b?") == [[None, 1, None, 1, None]]


def test_an_answer_joins_the_first_class_that_it_equals() -> None:
    """b equals c and c equals d, but b differs from d: d, compared with b first, then with c, joins c's class, b."""
    same = {("b", "c"), ("c", "d")}
    assert find_classes([make_grades("bcd")], lambda pairs: iter([pair in same for pair in pairs])) == [[0, 0, 0]]


def test_only_different_spellings_are_compared() -> None:
    compared: list[AnswerPair] = []

    def note(pairs: Iterable[AnswerPair]) -> Iterator[bool]:
        for pair in pairs:
            compared.append(pair)
            yield False

    find_classes([make_grades("bbacbA"), make_grades("a?")], note)
    assert compared == [("b", "c")]
