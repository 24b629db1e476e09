import pytest

from irpo_nemo.errors import DataError
from irpo_nemo.grading import text
from tests.grading.problems import gold_problem


@pytest.mark.parametrize(
    ("completion", "verdict", "layer"),
    [
        ("She thinks.\nFinal answer: New  York.", "correct", "final_answer"),
        ("Final answer: **new york**", "correct", "final_answer"),
        ("Final answer: Paris", "wrong", "final_answer"),
        ("Final answer: New York City", "wrong", "final_answer"),
        ("Final answer:\nNew York", "correct", "last_line"),
        ("It is\n NEW YORK \n", "correct", "last_line"),
        ("New York\nQuestion: and Paris?\nParis", "correct", "last_line"),
        ("   ", "unparsable", "none"),
        ("Final answer:", "unparsable", "none"),
    ],
)
def test_text_is_compared_in_normal_form(completion: str, verdict: str, layer: str) -> None:
    grade = text.grade(gold_problem("New York"), completion)
    assert (grade.verdict, grade.layer) == (verdict, layer)


def test_empty_gold_is_an_error() -> None:
    with pytest.raises(DataError) as error:
        text.check_gold(gold_problem(" . "))
    assert str(error.value) == "gold answer ' . ' is empty; wanted some text."
