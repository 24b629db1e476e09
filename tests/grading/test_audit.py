import itertools

import pytest

from irpo_nemo.grading import GRADERS
from irpo_nemo.grading.audit import AUDITORS
from irpo_nemo.records import Problem
from tests.grading.agreement import needs_data, read_rows
from tests.grading.problems import gold_problem


def test_every_grader_has_an_auditor() -> None:
    assert set(AUDITORS) == set(GRADERS)


@pytest.mark.parametrize("name", sorted(AUDITORS))
def test_auditors_share_no_code_with_graders(name: str) -> None:
    assert AUDITORS[name].grade.__func__.__module__ == "irpo_nemo.grading.audit"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "gold", "text", "verdict"),
    [
        ("numeric", "42", "6*7 = 42\nFinal answer: 42", "correct"),
        ("numeric", "1200", "#### $1,200", "correct"),
        ("numeric", "3/4", "\\boxed{\\frac{3}{4}}", "correct"),
        ("numeric", "42", "I count 41 of them.", "wrong"),
        ("numeric", "42", "none", "unparsable"),
        ("latex", r"\frac{3}{4}", r"\boxed{\dfrac34}", "correct"),
        ("latex", r"\sqrt{12}", r"Final answer: $2\sqrt{3}$", "correct"),
        (
            "latex",
            r"\begin{pmatrix} 1/5 \\ 2 \end{pmatrix}",
            r"\boxed{\begin{pmatrix}\frac15\\2\end{pmatrix}}",
            "correct",
        ),
        ("latex", "(1,2)", r"\boxed{(2,1)}", "wrong"),
        ("latex", "5", r"\boxed{9^{9^{9}}}", "wrong"),
        ("latex", "5", "", "unparsable"),
        ("text", "New York", "Final answer: new york.", "correct"),
        ("text", "New York", "It is\nParis", "wrong"),
    ],
)
def test_auditors_judge(name: str, gold: str, text: str, verdict: str) -> None:
    assert AUDITORS[name].grade(gold_problem(gold), text).verdict == verdict


def test_the_choice_auditor_takes_the_labels_of_the_problem() -> None:
    problem = Problem(problem_id="", question="", gold_answer="2", choice_labels=["1", "2", "3"])
    assert AUDITORS["choice"].grade(problem, "Final answer: (2) water").verdict == "correct"
    assert AUDITORS["choice"].grade(problem, "Final answer: B").verdict == "unparsable"


@needs_data
@pytest.mark.parametrize(
    ("name", "file_name", "share"),
    [("numeric", "gsm8k_outputs.jsonl.gz", 0.995), ("latex", "math_outputs.jsonl.gz", 0.985)],
)
def test_auditors_rarely_disagree_on_real_outputs(name: str, file_name: str, share: float) -> None:
    agreed, num_rows = 0, 0
    for row in itertools.islice(read_rows(file_name), 0, None, 5):
        problem = gold_problem(row["gold"])
        verdicts = {
            grader.grade(problem, row["response"]).verdict == "correct" for grader in (GRADERS[name], AUDITORS[name])
        }
        agreed += len(verdicts) == 1
        num_rows += 1
    assert agreed / num_rows > share
