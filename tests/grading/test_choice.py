import json
import time
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.errors import DataError
from irpo_nemo.grading import choice
from irpo_nemo.records import Problem
from tests.grading import choice_cases

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside this checkout")

TEXTS = ["iron", "a plant", "water vapor", "water"]


def make_problem(gold: str, *, labels: str = "ABCD", choices: list[str] | None = None) -> Problem:
    return Problem(problem_id="", question="", gold_answer=gold, choice_labels=list(labels), choices=choices or [])


def answer_of(completion: str, **options: Any) -> str | None:
    return choice.grade(make_problem(options.get("labels", "ABCD")[0], **options), completion).answer


DECLARED = {
    "A": [
        "(A)",
        "a.",
        "A)",
        r"\boxed{A}",
        "**A**",
        "A. Because B is not valid",
        "The answer is A because plants need light.",
        "The answer is A, B is wrong.",
        "Final Answer: A. Potential energy",
        "The best answer is A: iron",
    ],
    "B": [
        "B\u3002 \u4e0d\u662f A",
        "Final answer is B",
        "Final answer: B.",
        "Final answer: B) text",
        "**Answer: B**",
        "Answer:B",
        "answer b",
        "#### B",
        "So the answer is B.",
        "The correct answer is (B) because option (A) melts.",
        "The answer is not A but B",
        "Neither A nor C nor D. The answer must be B.",
        "Final answer: B, not A",
        "Final answer: B rather than A",
        "Final answer: (B) iron, since (A) is wrong",
        "Vitamin C is wrong. The answer is (B).",
        "Therefore the solution is B.",
        "The correct letter is B.",
        "If the answer is A, we get a contradiction. The answer is B.",
        "The answer is A. Wait, that is wrong. The answer is B.",
        "The correct answer is B. The answer is based on photosynthesis.",
        "Answer: B\nExplanation: the options A, C and D are incorrect.",
        "(B)\n\nExplanation: (A) is not valid.",
        "(A) is wrong because of rust.\n(B) is right.\n(C) melts.\nSo the answer is (B).",
        "A. iron - no\nB. plant - yes\nC. water - no\n\nB",
        "The correct answer is:\n\n**(B)** a plant",
        "Thus, the answer is B, as A is about iron and C is about water.",
        "Of the options, B is the best choice.",
        "I'll go with B.",
        "The answer is $\\boxed{\\text{(B)}}$, not A",
        "The final answer is: $\\boxed{\\textbf{B}}$. I hope it is correct.",
        "Answer: \\(\\boxed{B}\\)",
    ],
    "C": [
        "Option C",
        "C: text",
        "Final answer: c",
        "the correct choice is (c)",
        "Correct Answer: C. Vapor",
        "Ans: C",
        "Answer - C",
        "Final answer: [C]",
        'Final answer: "C"',
        "Final answer: <C>",
        "Final answer: Letter C",
        "It must be C.",
        "Hence, C",
        "thinking about it I think the correct answer is C",
        '{"reasoning": "...", "answer": "C"}',
        "<answer>C</answer>",
        "Final answer: (insert letter here)\nC",
        "So (C).\nFinal answer: (insert letter here)",
    ],
    "D": [
        "The answer is for sure D, it can't be A or B",
        "The answer: D, it doesn't make sense for it to be A or B",
        "### Final Answer\n\nD) water",
        "**Final Answer:**\nD",
        "Therefore, option D is correct.",
        "(D) is the correct answer.",
        "I would choose D.",
        "It rains.\n(D) Water falls.",
    ],
}


@pytest.mark.parametrize(
    ("label", "completion"), [(label, completion) for label, texts in DECLARED.items() for completion in texts]
)
def test_a_declared_label_is_read(label: str, completion: str) -> None:
    assert answer_of(completion) == label


@pytest.mark.parametrize("completion", choice_cases.DECLARE_B)
def test_formats_of_many_models_are_read(completion: str) -> None:
    assert answer_of(completion, choices=choice_cases.TEXTS) == "B"
    assert answer_of(completion) == "B"


@pytest.mark.parametrize("completion", choice_cases.DECLARE_B_BY_TEXT)
def test_formats_of_many_models_that_name_no_label_are_read_where_texts_are_known(completion: str) -> None:
    assert answer_of(completion, choices=choice_cases.TEXTS) == "B"
    assert answer_of(completion) is None


@pytest.mark.parametrize("completion", choice_cases.DECLARE_NOTHING)
def test_formats_of_many_models_that_do_not_decide(completion: str) -> None:
    assert answer_of(completion, choices=choice_cases.TEXTS) is None
    assert answer_of(completion) is None


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "Let us think.",
        "The answer is A plant",
        "The answer is not A.",
        "A or B",
        "Final answer: A and C",
        "Final answer: A/B",
        "Final answer: A-B",
        "Final answer: AB",
        "The answer is $\\boxed{A}$ or $\\boxed{B}$",
        "A, B, C and D are all fine.",
        "A. iron\nB. plant\nC. vapor\nD. water",
        "Final answer: E",
        "Answer: (E)",
        "Final answer: none of the above",
        "Final answer: (insert letter here)",
        "Let us look at option (A). It says",
        "Let us look at them.\n(A) It will",
        "(A) is wrong because it melts. (B)",
        "(A) It will: not likely.\n(B) It",
        "A: No.",
        "It melts, so A is wrong.",
        "Options A and B are wrong, so the answer must be between C and D.",
    ],
)
def test_what_declares_no_one_label_is_unparsable(completion: str) -> None:
    grade = choice.grade(make_problem("A"), completion)
    assert (grade.answer, grade.verdict) == (None, "unparsable")


@pytest.mark.parametrize(
    ("completion", "label"),
    [
        ("Final answer: a plant", "B"),
        ("The answer is A plant.", "B"),
        ("A plant", "B"),
        ("The answer is water.", "D"),
        ("The answer is water vapor because it rises", "C"),
        ("The answer is water buffalo", None),
        (r"\boxed{\text{Iron}}", "A"),
        ("Final answer: A iron", "A"),
        ("Final answer: (A) water", "A"),
        ("It rains.\n\nD. water", "D"),
        ("It rains.\n\nD. wat", None),
    ],
)
def test_an_options_own_text_counts_where_there_is_no_label(completion: str, label: str | None) -> None:
    assert answer_of(completion, choices=TEXTS) == label


@pytest.mark.parametrize(
    ("completion", "label"),
    [
        ("Answer: 3", "3"),
        ("(3)", "3"),
        ("Option 2 is correct", "2"),
        ("The answer is (2) because of 3", "2"),
        ("The answer is 3 meters", None),
        ("The answer is 3.5", None),
        ("Final answer: C", None),
    ],
)
def test_digit_labels_are_read(completion: str, label: str | None) -> None:
    assert answer_of(completion, labels="1234") == label


@pytest.mark.parametrize(
    "run_on",
    [
        "\n\nQuestion: Which melts?\n(A) ice\n(B) iron\nSolution: Ice.\nFinal answer: (A)",
        "\n\nYour task is to answer the question below.\nThe answer is A.",
        "\n\nA lamp is on.\n(A) hot\n(B) cold\n(C) wet\nSolution: Touch it.\nFinal answer: (A)",
        "\n### Question 2: why?\nAnswer: A",
        "\nHuman: thanks\nAnswer: A",
    ],
)
def test_an_invented_next_question_changes_nothing(run_on: str) -> None:
    for completion in ("It grows.\nFinal answer: (B)", "It grows.\nFinal answer: Option B."):
        assert choice.grade(make_problem("B"), completion + run_on).verdict == "correct"


def test_a_question_repeated_before_the_answer_is_passed_over() -> None:
    assert answer_of("Question: Which one?\n(A) ice\n(B) iron\nSolution: It rusts.\nFinal answer: (B)") == "B"


@pytest.mark.parametrize(
    ("completion", "layer"),
    [
        ("Final answer: B", "final_answer"),
        (r"\boxed{B}", "boxed"),
        ("The answer is B", "answer"),
        ("Option B is correct. The rest is not.", "called_right"),
        ("So B.", "conclusion"),
        ("B", "label_line"),
        ("Final answer: a plant", "final_answer/text"),
        ("A plant", "last_line"),
        ("Hm.", "none"),
    ],
)
def test_the_layer_that_decided_is_named(completion: str, layer: str) -> None:
    assert choice.grade(make_problem("B", choices=TEXTS), completion).layer == layer


@pytest.mark.parametrize("gold", ["B", "b", "(B)", "B.", "B) a plant", "a plant", "A Plant."])
def test_gold_answers_name_an_option(gold: str) -> None:
    problem = make_problem(gold, choices=TEXTS)
    choice.check_gold(problem)
    assert choice.grade(problem, "Final answer: B").verdict == "correct"


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (make_problem("E"), "gold answer 'E' is none of the labels A, B, C, D; wanted one of them."),
        (make_problem("A or B"), "gold answer 'A or B' is none of the labels A, B, C, D; wanted one of them."),
        (make_problem("A", choices=["x"]), "has 1 choices for 4 labels. Give each choice one label."),
        (
            make_problem("A", labels="ABA"),
            "choice labels A, B, A are not all different. Give each choice its own label.",
        ),
    ],
)
def test_a_malformed_gold_answer_is_an_error(problem: Problem, message: str) -> None:
    with pytest.raises(DataError) as error:
        choice.check_gold(problem)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "piece",
    [" ", "\n", "(", "<", "_", "\\boxed{", "\\text{", "so ", "A ", "A or ", "Q:\n", "the answer is ", "(A) x\n(B) y\n"],
)
def test_long_repetitions_cost_little(piece: str) -> None:
    start = time.perf_counter()
    choice.grade(make_problem("A"), piece * 200_000)
    assert time.perf_counter() - start < 5


def test_golden_cases_hold() -> None:
    for problem, completion, verdict in choice.golden_cases():
        assert choice.grade(problem, completion).verdict == verdict, completion


def test_answers_are_the_same_when_their_labels_are() -> None:
    assert choice.is_same("A", "A")
    assert not choice.is_same("A", "B")


LABEL_RENDERINGS = [
    "{label}",
    "({label})",
    "({label}) {text}",
    "{label}. {text}",
    "{label}: {text}",
    "Let us think step by step.\nFinal answer: ({label})",
    "Let us think.\nFinal answer: {label}) {text}",
    "Let us think.\n**Final Answer**\n\n**{label}. {text}**",
    "It follows that \\[\\boxed{{\\text{{{label}}}}}\\]",
    "So the answer is {label}.",
    "The correct answer is **({label}) {text}**, because the other options do not fit.",
    "Therefore, option {label} is the correct answer.",
]
TEXT_RENDERINGS = ["Final answer: {text}", "The correct answer is: {text}", "Let us think.\n\n{text}"]


@needs_data
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_every_gold_answer_of_arc_is_correct_and_every_other_label_wrong(name: str) -> None:
    lines = (DATA / f"arc_challenge_{name}.jsonl").read_text(encoding="utf-8").split("\n")
    for row in (json.loads(line) for line in lines if line):
        labels, texts = row["choices"]["label"], row["choices"]["text"]
        problem = make_problem(row["answerKey"], labels=labels, choices=texts)
        for place, (label, text) in enumerate(zip(labels, texts, strict=True)):
            is_named_by_text = texts.count(text) == 1 and text.casefold() not in map(str.casefold, labels)
            renderings = LABEL_RENDERINGS + TEXT_RENDERINGS * is_named_by_text
            if label != row["answerKey"]:
                renderings = renderings[place::4]
            for rendering in renderings:
                completion = rendering.format(label=label, text=text)
                wanted = "correct" if label == row["answerKey"] else "wrong"
                assert choice.grade(problem, completion).verdict == wanted, (row["id"], label, completion)


UNSUPPORTED_GOLD = {"case-8553054216"}
"""Its gold answer is a sentence of two lines; ours is a label or an option's text."""


@needs_data
def test_published_multiple_choice_cases_agree() -> None:
    rows = [json.loads(line) for line in (DATA / "grader_cases.jsonl").read_text(encoding="utf-8").split("\n") if line]
    rows = [row for row in rows if row["kind"].startswith("mcq") and row["id"] not in UNSUPPORTED_GOLD]
    assert len(rows) == 9
    for row in rows:
        problem = Problem(problem_id=row["id"], question="", gold_answer=row["gold"])
        assert (choice.grade(problem, row["pred"]).verdict == "correct") == row["expected"], row["id"]
