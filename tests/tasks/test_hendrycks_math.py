import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.grading import GRADERS
from irpo_nemo.tasks.hendrycks_math import find_boxes, read_gold_answer
from tests.tasks.files import DATA, error_of, make_task, needs_data, write_rows

ROW = {
    "problem": "What is $1+1$?",
    "level": "Level 1",
    "type": "Prealgebra",
    "solution": "One and one are $\\boxed{2}$.",
}


def make_rows(count: int) -> list[dict[str, Any]]:
    return [
        {**ROW, "problem": f"What is ${n}+1$?", "solution": f"It is $\\boxed{{{n + 1}}}$.", "id": f"p{n}"}
        for n in range(count)
    ]


def test_a_folder_in_maths_own_layout_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    for name in ("algebra/10.json", "algebra/2.json", "geometry/1.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({**ROW, "problem": f"{ROW['problem']} {name}"}))
    task = make_task("hendrycks_math", folder, num_shots=0)
    problems = task.train_problems()
    assert [problem.problem_id for problem in problems] == [
        "train/algebra/2.json",
        "train/algebra/10.json",
        "train/geometry/1.json",
    ]
    assert (problems[0].gold_answer, problems[0].level, problems[0].subject) == ("2", "Level 1", "Prealgebra")
    assert task.data_files() == [folder, folder]


def test_the_prompt_is_the_papers_with_four_examples(tmp_path: Path) -> None:
    task = make_task("hendrycks_math", write_rows(tmp_path / "math.jsonl", *make_rows(9)), shot_ids=["p3", "p1"])
    problems = {problem.problem_id: problem for problem in task.train_problems()}
    assert set(problems) == {"p0", "p2", "p4", "p5", "p6", "p7", "p8"}
    assert task.prompt(problems["p0"]) == (
        "Your task is to answer the last question below. Give step by step reasoning before you answer, and when "
        "you're ready to answer, please wrap your answer in \\boxed, and conclude using the format "
        '"Final answer: ..."\n'
        "Question: What is $3+1$?\n"
        "Solution: It is $\\boxed{4}$.\n"
        "Final answer: $4$\n"
        "Question: What is $1+1$?\n"
        "Solution: It is $\\boxed{2}$.\n"
        "Final answer: $2$\n"
        "Question: What is $0+1$?\n"
        "Solution:"
    )
    assert make_task("hendrycks_math", tmp_path / "math.jsonl").prompt(problems["p0"]).count("Question:") == 5


def test_without_examples_the_prompt_asks_the_only_question(tmp_path: Path) -> None:
    task = make_task("hendrycks_math", write_rows(tmp_path / "math.jsonl", ROW), num_shots=0)
    prompt = task.prompt(task.train_problems()[0])
    assert prompt.startswith("Your task is to answer the question below. ")
    assert prompt.endswith("\nQuestion: What is $1+1$?\nSolution:")


def test_other_spellings_of_the_published_fields_are_read(tmp_path: Path) -> None:
    row = {"problem": "What?", "solution": "$\\boxed{2}$", "level": 3, "subject": "Algebra", "unique_id": "test/1.json"}
    task = make_task("hendrycks_math", write_rows(tmp_path / "math.jsonl", row), num_shots=0)
    (problem,) = task.train_problems()
    assert (problem.problem_id, problem.level, problem.subject) == ("test/1.json", "Level 3", "Algebra")


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (r"\boxed{\frac{1}{2}} and \fbox{3}", [r"\frac{1}{2}", "3"]),
        (r"so $\boxed 7$ or $\boxed\pi$", ["7", r"\pi"]),
        (r"\boxed{} and \boxed{never closes", []),
        ("\\boxed{90\\text{ square\nunits}}", [r"90\text{ square units}"]),
        ("none", []),
    ],
)
def test_boxes_are_found(text: str, boxes: list[str]) -> None:
    assert find_boxes(text) == boxes


@pytest.mark.parametrize(
    ("question", "solution", "gold"),
    [
        ("How many?", r"$\boxed{3}$, or rather $\boxed{4}$.", "4"),
        (
            "Enter all the solutions, separated by commas.",
            r"$x = \boxed{3}$ or $x = \boxed{\frac{2}{5}}.$",
            r"3, \frac{2}{5}",
        ),
        ("Enter all the solutions, separated by commas.", r"$\boxed{3,4}$. Again, $\boxed{3,4}$", "3,4"),
        ("Find a focus.", r"$\boxed{(10,0)}$ and $\boxed{(0,0)}.$ (Either point is an acceptable answer.)", "(10,0)"),
        ("Find $d$.", r"$d=\boxed{-3}$. Note: $\boxed{3}$ is also accepted as an answer.", "-3"),
    ],
)
def test_several_boxes_follow_the_stated_policy(question: str, solution: str, gold: str) -> None:
    assert read_gold_answer(question, solution) == gold


def test_a_solution_without_a_box_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "math.jsonl", {**ROW, "solution": "It is 2."})
    assert error_of(make_task("hendrycks_math", path)) == (
        rf"{path}:1: 'solution' has no \boxed{{...}}, as MATH's solutions do. Use task=jsonl for other formats."
    )


def test_a_folder_without_problems_is_an_error(tmp_path: Path) -> None:
    assert error_of(make_task("hendrycks_math", tmp_path)) == (
        f"{tmp_path}: holds no .json files; wanted one problem a file. Or name a file of JSON lines."
    )


SEVERAL_ANSWERS = {
    "test/algebra/1730.json": "-3",
    "test/intermediate_algebra/25.json": "(10, 0)",
    "test/intermediate_algebra/702.json": r"\left(\tfrac32, -\tfrac52\right)",
    "test/intermediate_algebra/747.json": "(3,-5)",
    "test/algebra/1878.json": "-2, 1",
    "test/intermediate_algebra/225.json": r"3, \frac{2}{5}",
    "test/intermediate_algebra/1020.json": "5 - 10i, 11, -3 + 6i",
    "test/intermediate_algebra/1855.json": r"-\tfrac32, -\tfrac34",
    "test/intermediate_algebra/2089.json": "-10879, 10879",
    "test/precalculus/679.json": r"\frac{\pi}{4}, \frac{5\pi}{4}",
    "test/precalculus/1227.json": "-1, 2",
    "test/precalculus/1233.json": r"30^\circ, 45^\circ, 105^\circ",
}


@needs_data
def test_gold_answers_of_the_test_set_are_the_last_boxes_but_where_several_are_right() -> None:
    path = DATA / "math_test.jsonl.gz"
    problems = {p.problem_id: p for p in make_task("hendrycks_math", path, num_shots=0).train_problems()}
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        rows = {row["id"]: row for row in map(json.loads, file)}
    assert len(problems) == len(rows) == 4500
    differing = {
        key: problem.gold_answer
        for key, problem in problems.items()
        if not same_words(problem.gold_answer, rows[key]["boxed"])
    }
    assert differing == {key: gold for key, gold in SEVERAL_ANSWERS.items() if key in rows}
    assert {problem.level for problem in problems.values()} == {f"Level {n}" for n in range(1, 6)}


def same_words(left: str, right: str) -> bool:
    return left.split() == right.split()


@needs_data
def test_every_gold_completion_of_math_is_graded_correct() -> None:
    task = make_task("hendrycks_math", DATA / "math_train.jsonl.gz", test_path=str(DATA / "math_test.jsonl.gz"))
    train, test = task.train_problems(), task.test_problems()
    assert (len(train), len(test)) == (7496, 4500)
    grader = GRADERS[task.grader]
    wrong = [p.problem_id for p in train + test if grader.grade(p, task.gold_completion(p) or "").verdict != "correct"]
    assert wrong == []
