import json
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.grading import GRADERS
from tests.tasks.files import DATA, error_of, make_task, needs_data, write_rows

FLAT = {
    "id": "Mercury_1",
    "question": "Which one melts first?",
    "choices": {"text": ["ice", "iron", "salt"], "label": ["A", "B", "C"]},
    "answerKey": "A",
}
NESTED = {
    "id": "Mercury_1",
    "question": {
        "stem": "Which one melts first?",
        "choices": [{"text": "ice", "label": "A"}, {"text": "iron", "label": "B"}, {"text": "salt", "label": "C"}],
    },
    "answerKey": "A",
}


@pytest.mark.parametrize("row", [FLAT, NESTED], ids=["flat", "nested"])
def test_a_row_of_either_layout_becomes_the_papers_prompt(tmp_path: Path, row: dict[str, Any]) -> None:
    task = make_task("arc_challenge", write_rows(tmp_path / "arc.jsonl", row))
    (problem,) = task.train_problems()
    assert problem.problem_id == "Mercury_1"
    assert (problem.gold_answer, problem.choice_labels, problem.choices) == (
        "A",
        ["A", "B", "C"],
        ["ice", "iron", "salt"],
    )
    assert task.gold_completion(problem) is None
    assert list(task.demonstrations()) == []
    assert task.prompt(problem) == (
        "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're "
        'ready to answer, conclude using the format "Final answer: (insert letter here)"\n'
        "Question: Which one melts first?\n"
        "(A) ice\n"
        "(B) iron\n"
        "(C) salt\n"
        "Solution:"
    )


@pytest.mark.parametrize(("labels", "key"), [(["1", "2", "3"], "2"), ([1, 2, 3], 2)], ids=["text", "numbers"])
def test_digit_labels_are_shown_and_graded_as_letters(tmp_path: Path, labels: list[Any], key: Any) -> None:
    choices = {"text": ["ice", "iron", "salt"], "label": labels}
    task = make_task(
        "arc_challenge", write_rows(tmp_path / "arc.jsonl", {**FLAT, "choices": choices, "answerKey": key})
    )
    (problem,) = task.train_problems()
    assert (problem.gold_answer, problem.choice_labels) == ("B", ["A", "B", "C"])
    assert "\n(B) iron\n" in task.prompt(problem)
    assert GRADERS[task.grader].grade(problem, "Final answer: (B)").verdict == "correct"


def test_easy_questions_join_the_training_set_only(tmp_path: Path) -> None:
    hard = write_rows(tmp_path / "hard.jsonl", FLAT)
    easy = write_rows(tmp_path / "easy.jsonl", {**FLAT, "id": "easy"})
    task = make_task("arc_challenge", hard, extra_train_paths=[str(easy)])
    assert [problem.problem_id for problem in task.train_problems()] == ["Mercury_1", "easy"]
    assert [problem.problem_id for problem in task.test_problems()] == ["Mercury_1"]
    assert task.data_files() == [hard, easy, hard]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": "D"}, "'answerKey' is 'D', but the labels are A, B, C. Mend one of them."),
        (
            {"choices": None},
            "'choices' is null, but two options or more are wanted, "
            'as [{"label": "A", "text": "ice"}, ...] or ["ice", ...].',
        ),
        (
            {"choices": {"text": ["ice"], "label": ["A", "B"]}},
            '\'choices\' is {"text": ["ice"], "label": ["A", "B"]}, but two options or more are wanted, '
            'as [{"label": "A", "text": "ice"}, ...] or ["ice", ...].',
        ),
        (
            {"choices": [{"text": "ice"}, {"text": "iron"}]},
            "has no 'label'; found 'text'. Add it, or rename that key.",
        ),
        (
            {"question": {"choices": NESTED["question"]["choices"]}},
            "'question' is null, but text is wanted. Write it in double quotes.",
        ),
    ],
)
def test_a_row_that_makes_no_sense_is_named_by_file_and_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_rows(tmp_path / "arc.jsonl", FLAT, {**FLAT, "id": "2", **change})
    assert error_of(make_task("arc_challenge", path)) == f"{path}:2: {message}"


@needs_data
def test_all_of_arc_challenge_is_read_in_either_layout(tmp_path: Path) -> None:
    sizes = {"train": 1119, "validation": 299, "test": 1172}
    for name, size in sizes.items():
        path = DATA / f"arc_challenge_{name}.jsonl"
        problems = make_task("arc_challenge", path).train_problems()
        assert len(problems) == size
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        nested = write_rows(tmp_path / f"{name}.jsonl", *map(nest, rows))
        assert make_task("arc_challenge", nested).train_problems() == problems


def nest(row: dict[str, Any]) -> dict[str, Any]:
    """A flat row in AllenAI's own layout."""
    pairs = zip(row["choices"]["text"], row["choices"]["label"], strict=True)
    choices = [{"text": text, "label": label} for text, label in pairs]
    return {**row, "question": {"stem": row["question"], "choices": choices}, "choices": None}
