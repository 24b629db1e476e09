import gzip
import json
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.errors import DataError
from irpo_nemo.grading import numeric
from irpo_nemo.grading.numeric import extract_number, read_number
from tests.grading.problems import gold_problem

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside this checkout")


def read_rows(name: str) -> Iterator[dict[str, Any]]:
    opener = gzip.open if name.endswith(".gz") else open
    with opener(DATA / name, "rt", encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


@pytest.mark.parametrize(
    ("phrase", "value"),
    [
        ("42", Fraction(42)),
        ("-3.5", Fraction(-7, 2)),
        (".5", Fraction(1, 2)),
        ("0.50", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("1e3", Fraction(1000)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("118 000", Fraction(118000)),
        ("$1,200.50.", Fraction(2401, 2)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        ("- 5", Fraction(-5)),
        ("\N{MINUS SIGN}7", Fraction(-7)),
        ("50%", Fraction(50)),
        ("42\\%", Fraction(42)),
        ("US$5", Fraction(5)),
        ("5kg", Fraction(5)),
        ("5 m^2", Fraction(5)),
        ("100 \\text{ dollars}", Fraction(100)),
        ("She has 5 apples.", Fraction(5)),
        ("**42**", Fraction(42)),
        ("\\(42\\)", Fraction(42)),
        ("$\\boxed{1,000}$", Fraction(1000)),
        ("10{,}000", Fraction(10000)),
        ("1\\,000", Fraction(1000)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{1}{2}", Fraction(-1, 2)),
        ("3\\frac{1}{2}", Fraction(7, 2)),
        ("(42)", Fraction(42)),
        ("42 (6*7)", Fraction(42)),
        ("6*7 = 42", Fraction(42)),
        ("42. I hope that 7 helps.", Fraction(42)),
        ("5, that is 5.0", Fraction(5)),
    ],
)
def test_one_number_is_read(phrase: str, value: Fraction) -> None:
    assert read_number(phrase) == value


@pytest.mark.parametrize(
    "phrase",
    [
        "",
        "five",
        "...",
        "5 or 6",
        "5-6",
        "10 - 5",
        "3 + 4",
        "1,23",
        "2:30",
        "12/25/2024",
        "1.2.3",
        "2^10",
        "2**10",
        "5\\pi",
        "\\sqrt{5}",
        "√5",
        "1/0",
        "1e999999999",
        "9" * 5000,
        "x^2",
    ],
)
def test_what_is_not_one_number_is_not_read(phrase: str) -> None:
    assert read_number(phrase) is None


@pytest.mark.parametrize(
    ("text", "value", "layer"),
    [
        ("2+3=5\nFinal answer: 5", 5, "final_answer"),
        ("Final answer: 4\nno, wait.\nFinal answer: 5", 5, "final_answer"),
        ("**Final Answer:** **5** apples", 5, "final_answer"),
        ("The final answer is $5$. I hope it is correct.", 5, "final_answer"),
        ("the final answer is obtained by adding 5", 5, "last_number"),
        ("#### 4\nFinal answer: 5", 5, "final_answer"),
        ("Final answer: none of them, though 5 is near to 6", None, "final_answer"),
        ("Final answer: unknown", None, "final_answer"),
        ("3 apples.\nFinal answer:", None, "none"),
        ("3 apples.\nFinal answer:\n\\[\n5\n\\]", 5, "last_number"),
        ("3 apples.\nFinal answer:\n\\boxed{5}", 5, "boxed"),
        ("so 4\n#### 1,005", 1005, "hash"),
        ("#### Step 3: add\n#### 5", 5, "hash"),
        ("#### Step 3: add them", 3, "last_number"),
        ("\\boxed{4} and \\boxed{5}, 7 in all", 5, "boxed"),
        ("\\boxed{\\text{none}} of 7", None, "boxed"),
        ("\\boxed{4", 4, "last_number"),
        ("first 3, then 4, so 5.", 5, "last_number"),
        ("I do not know", None, "none"),
        ("", None, "none"),
        ("Final answer: 5\n\nQuestion: and 7?\nFinal answer: 8", 5, "final_answer"),
        ("so 5\n  Question: what is 7?", 5, "last_number"),
        ("Question: 3 and 2?\nFinal answer: 5", 5, "final_answer"),
    ],
)
def test_layers_of_extraction(text: str, value: int | None, layer: str) -> None:
    assert extract_number(text) == (value, layer)


def test_verdicts() -> None:
    verdicts = [
        numeric.grade(gold_problem("0.5"), f"Final answer: {answer}").verdict for answer in ("1/2", "0.50", "2", "half")
    ]
    assert verdicts == ["correct", "correct", "wrong", "unparsable"]


def test_equal_answers_are_equal_strings() -> None:
    answers = {
        numeric.grade(gold_problem("1"), f"Final answer: {answer}").answer
        for answer in ("1,500", "1500.0", "$1500", "3000/2")
    }
    assert answers == {"1500"}


def test_comparison_is_exact() -> None:
    assert numeric.grade(gold_problem("1/3"), "0.3333333333").verdict == "wrong"
    assert numeric.grade(gold_problem("12345678901234567890"), "12345678901234567891").verdict == "wrong"


@pytest.mark.parametrize("gold", ["", "many", "5 or 6", "9" * 200])
def test_malformed_gold_is_an_error(gold: str) -> None:
    with pytest.raises(DataError) as error:
        numeric.check_gold(gold_problem(gold))
    assert str(error.value) == f"gold answer {gold!r} is not one number; wanted for example 42, -3.5, 1,200 or 3/4."


@pytest.mark.parametrize(
    "text",
    [
        "9" * 200_000,
        "1," * 100_000,
        "1 " * 100_000,
        "1" + " " * 200_000,
        "(" * 200_000,
        "\\boxed{" * 30_000,
        "Final answer: " * 15_000 + "1",
        "final " * 30_000,
        "\n" * 200_000 + "Question:",
        "1/" * 100_000,
        "Final answer: " + "1 " * 100_000,
        "#### " + "1 ." * 60_000 + "x",
        "\\frac{" * 30_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    numeric.grade(gold_problem("1"), text)
    assert time.process_time() - began < 1.0


@needs_data
def test_every_gsm8k_solution_is_correct_against_itself() -> None:
    rows = [*read_rows("gsm8k_train.jsonl.gz"), *read_rows("gsm8k_test.jsonl")]
    verdicts = [
        numeric.grade(gold_problem(row["answer"].rsplit("####", 1)[1].strip()), row["answer"]).verdict for row in rows
    ]
    assert len(rows) == 8792
    assert set(verdicts) == {"correct"}


@needs_data
def test_openai_labels_of_gsm8k_solutions_are_met() -> None:
    """2536 solutions of four models, labelled by OpenAI."""
    disagreements = [
        row["solution"]
        for row in read_rows("gsm8k_openai_solutions.jsonl.gz")
        if (numeric.grade(gold_problem(row["gold"]), row["solution"]).verdict == "correct") != row["is_correct"]
    ]
    assert disagreements == []


@needs_data
def test_real_outputs_disagree_with_the_published_parse_only_where_that_is_wrong() -> None:
    """3804 outputs of six models; "35+70=105", "50dollars" and the like were published as no number."""
    disagreements = []
    for row in read_rows("gsm8k_outputs.jsonl.gz"):
        grade = numeric.grade(gold_problem(row["gold"]), row["response"])
        if (grade.verdict == "correct") != bool(row["pred_num_equal"]):
            disagreements.append((row["gold"], row["pred"], grade.answer))
    assert sorted(disagreements) == [
        ("10", "10cents", "10"),
        ("105", "35+70=105", "105"),
        ("2", "2/3", "2/3"),
        ("4", "3+1=4", "4"),
        ("50", "50dollars", "50"),
    ]
