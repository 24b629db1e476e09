import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.config import IRPOConfig, TaskConfig
from irpo_nemo.errors import DataError, MachineError
from irpo_nemo.grading import GRADERS
from irpo_nemo.tasks import load_task
from irpo_nemo.tasks.rows import read_data_set
from tests.grading.problems import gold_problem
from tests.tasks.files import DATA, error_of, make_task, needs_data, write_rows

GSM8K_ROW = {
    "question": "Natalia sold 48 clips in April and half as many in May. How many in all?",
    "answer": "She sold 48/2 = <<48/2=24>>24 in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
}


def test_gsm8k_row_becomes_a_problem(tmp_path: Path) -> None:
    task = make_task("gsm8k", write_rows(tmp_path / "train.jsonl", GSM8K_ROW))
    (problem,) = task.train_problems()
    assert problem.problem_id == "train-0"
    assert problem.gold_answer == "72"
    assert task.prompt(problem) == (
        "Your task is to answer the question below. Give step by step reasoning before you answer, "
        'and when you\'re ready to answer, please use the format "Final answer: ..."\n'
        "Question: Natalia sold 48 clips in April and half as many in May. How many in all?\n"
        "Solution:"
    )
    gold = " She sold 48/2 = 24 in May.\nIn all 48+24 = 72.\nFinal answer: 72"
    assert task.gold_completion(problem) == gold
    assert list(task.demonstrations()) == [(task.prompt(problem), gold)]
    assert GRADERS[task.grader].grade(gold_problem("72"), gold).verdict == "correct"


def test_gzip_and_byte_order_mark_and_carriage_returns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(GSM8K_ROW).encode() + b"\r\n\r\n"))
    assert len(make_task("gsm8k", path).train_problems()) == 1


def test_lines_end_at_newline_only(tmp_path: Path) -> None:
    row = json.dumps({"question": "one\u2028two\x85three?", "answer": "3"}, ensure_ascii=False)
    (problem,) = make_task("jsonl", write_rows(tmp_path / "train.jsonl", row)).train_problems()
    assert problem.question == "one\u2028two\x85three?"


@needs_data
def test_all_of_gsm8k_is_read_and_every_gold_completion_is_correct() -> None:
    paths = {"train_path": str(DATA / "gsm8k_train.jsonl.gz"), "test_path": str(DATA / "gsm8k_test.jsonl")}
    task = load_task(IRPOConfig(task=TaskConfig(name="gsm8k", **paths)))
    train, test = task.train_problems(), task.test_problems()
    assert (len(train), len(test)) == (7473, 1319)
    grades = [GRADERS[task.grader].grade(problem, task.gold_completion(problem) or "") for problem in train + test]
    assert {(grade.verdict, grade.layer) for grade in grades} == {("correct", "final_answer")}
    assert not any("<<" in (problem.solution or "") for problem in train + test)
    assert task.data_files() == [Path(paths["train_path"]), Path(paths["test_path"])]


def test_gsm8k_answer_without_mark_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", GSM8K_ROW, {"question": "q?", "answer": "It is 72."})
    assert error_of(make_task("gsm8k", path)) == (
        f"{path}:2: 'answer' does not end in '#### n', as GSM8K's answers do. Use task=jsonl for other formats."
    )


def test_jsonl_row_becomes_a_problem(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "mine.jsonl",
        {"question": "2+3?", "answer": 5, "solution": "2+3 is 5.", "id": "a"},
        {"question": "1+1?", "answer": "2.50", "solution": "Count.\nFinal answer: $2.5"},
        {"question": "0+1?", "answer": 1.0, "solution": None},
    )
    task = make_task("jsonl", path, prompt_template="Q: {question}\nA:\n")
    problems = task.train_problems()
    assert [problem.problem_id for problem in problems] == ["a", "train-1", "train-2"]
    assert [problem.gold_answer for problem in problems] == ["5", "2.50", "1.0"]
    assert [task.gold_completion(problem) for problem in problems] == [
        "2+3 is 5.\nFinal answer: 5",
        "Count.\nFinal answer: $2.5",
        None,
    ]
    assert task.prompt(problems[0]) == "Q: 2+3?\nA:\n"
    assert [prompt for prompt, _ in task.demonstrations()] == ["Q: 2+3?\nA:\n", "Q: 1+1?\nA:\n"]


def test_jsonl_takes_text_answers_with_the_text_grader(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", {"question": "Capital of France?", "answer": "Paris"})
    task = make_task("jsonl", path, grader="text")
    assert GRADERS[task.grader].grade(task.train_problems()[0], "Final answer: paris.").verdict == "correct"


def test_max_problems_do_not_read_further(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", {"question": "2+3?", "answer": "5"}, "damaged")
    assert len(make_task("jsonl", path, max_train_problems=1).train_problems()) == 1


def test_jsonl_keeps_choices_level_and_subject(tmp_path: Path) -> None:
    row = {"question": "Which melts?", "choices": ["ice", "iron"], "answer": "A", "level": 2, "subject": "Physics"}
    path = write_rows(tmp_path / "mine.jsonl", row, {**row, "answer": "iron", "solution": "It is hot."})
    task = make_task("jsonl", path, grader="choice", prompt_template="{question}\n")
    first, second = task.train_problems()
    assert task.prompt(first) == "Which melts?\n(A) ice\n(B) iron\n"
    assert (first.choice_labels, first.choices, first.level, first.subject) == (
        ["A", "B"],
        ["ice", "iron"],
        "2",
        "Physics",
    )
    assert GRADERS[task.grader].grade(first, "Final answer: (A)").verdict == "correct"
    assert GRADERS[task.grader].grade(second, task.gold_completion(second) or "").verdict == "correct"


def test_jsonl_takes_latex_answers_with_the_latex_grader(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "mine.jsonl", {"question": "Half?", "answer": r"\frac12", "solution": "Final answer: $0.5$"}
    )
    task = make_task("jsonl", path, grader="latex")
    (problem,) = task.train_problems()
    assert task.gold_completion(problem) == " Final answer: $0.5$"


ROW = {"question": "2+3?", "answer": "5"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "2+3?"}, "has no 'answer'; found 'question'. Add it, or rename that key."),
        ({}, "has no 'answer'; found nothing. Add it, or rename that key."),
        ({"question": " ", "answer": "5"}, "'question' is empty. Fill it in, or delete the row."),
        ({"question": "2+3?", "answer": ""}, "'answer' is empty. Fill it in, or delete the row."),
        ({"question": "2+3?", "answer": None}, "'answer' is null, but text is wanted. Write it in double quotes."),
        (
            {"question": ["2+3?"], "answer": 5},
            "'question' is [\"2+3?\"], but text is wanted. Write it in double quotes.",
        ),
        (
            {"question": "2+3?", "answer": "five"},
            "gold answer 'five' is not one number; wanted for example 42, -3.5, 1,200 or 3/4.",
        ),
        (
            {"question": "2+3?", "answer": "5", "solution": "Final answer: 6"},
            "'solution' ends in the answer 6, but 'answer' is 5. Mend one of them.",
        ),
        (
            {"question": "\ud800?", "answer": "5"},
            "'question' holds half a surrogate pair, which is no character. Mend the row's \\u escapes.",
        ),
        ("[1, 2]", 'is [1, 2], but a JSON object is wanted, as {"question": ...}.'),
        (
            '{"question": "2+3?", "answer": "5',
            "is not JSON (Unterminated string starting at, column 32): "
            '{"question": "2+3?", "answer": "5. '
            "Mend or delete the line; if it is the last one, the file may be cut off.",
        ),
        ("[" * 100_000, "is nested too deeply. Wanted a JSON object of texts."),
    ],
)
def test_a_row_that_makes_no_sense_is_named_by_file_and_line(
    tmp_path: Path, row: dict[str, Any] | str, message: str
) -> None:
    path = write_rows(tmp_path / "mine.jsonl", ROW, row)
    assert error_of(make_task("jsonl", path)) == f"{path}:2: {message}"


def test_an_id_used_twice_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", {**ROW, "id": "a"}, ROW, {**ROW, "id": "a"})
    assert error_of(make_task("jsonl", path)) == (
        f"{path}:3: id 'a' was already used at {path}:1. Give every row its own id, or leave ids out."
    )


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    assert error_of(make_task("jsonl", path)) == (
        f"{path}: no such file. Set task.train_path and task.test_path to files that exist."
    )


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", "")
    assert error_of(make_task("jsonl", path)) == f"{path}: holds no problems; wanted one JSON object a line."


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes('{"question": "café?", "answer": "5"}\n'.encode("latin-1"))
    assert error_of(make_task("jsonl", path)) == (
        f"{path}: after line 0 comes text that is not UTF-8. Save the file as UTF-8."
    )


def test_a_gzip_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(ROW) + "\n").encode())[:-12])
    assert error_of(make_task("jsonl", path)).endswith("Fetch or copy the file again.")


def test_data_set_names_are_no_local_files(tmp_path: Path) -> None:
    here = tmp_path / "missing.jsonl"
    config = IRPOConfig(task=TaskConfig(name="gsm8k", train_path="openai/gsm8k", test_path=str(here)))
    assert load_task(config).data_files() == [here]


def test_a_data_set_counts_by_its_name() -> None:
    task = make_task("arc_challenge", "allenai/ai2_arc", extra_train_paths=["allenai/ai2_arc:ARC-Easy"])
    assert task.data_files() == []
    assert task.data_sets() == ["allenai/ai2_arc", "allenai/ai2_arc:ARC-Easy", "allenai/ai2_arc"]


def test_a_data_set_is_read_with_its_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, subset, split))
        return [
            {
                "id": f"{subset}-{split}",
                "question": "2+3?",
                "choices": {"text": ["5", "6"], "label": ["A", "B"]},
                "answerKey": "A",
            }
        ]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    easy = "allenai/ai2_arc:ARC-Easy"
    task = make_task("arc_challenge", "allenai/ai2_arc", extra_train_paths=[easy], dev_path="allenai/ai2_arc")
    assert [problem.problem_id for problem in task.train_problems()] == ["ARC-Challenge-train", "ARC-Easy-train"]
    assert [problem.problem_id for problem in task.test_problems()] == ["ARC-Challenge-test"]
    assert [problem.problem_id for problem in task.dev_problems()] == ["ARC-Challenge-validation"]
    assert asked == [
        ("allenai/ai2_arc", "ARC-Challenge", "train"),
        ("allenai/ai2_arc", "ARC-Easy", "train"),
        ("allenai/ai2_arc", "ARC-Challenge", "test"),
        ("allenai/ai2_arc", "ARC-Challenge", "validation"),
    ]


def test_datasets_rows_arrive_as_those_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    write_rows(folder / "train.jsonl", {"question": "2+3?", "answer": 5, "choices": ["a", "b"], "is_easy": True})
    ((place, row),) = read_data_set(str(folder), None, "train")
    assert place == f"{folder} train[0]"
    assert row == {"question": "2+3?", "answer": "5", "choices": ["a", "b"], "is_easy": True}


def test_a_data_set_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError) as error:
        list(read_data_set(str(tmp_path / "absent"), None, "train"))
    assert str(error.value).startswith(f"{tmp_path / 'absent'}: cannot be loaded from Hugging Face (")
    assert str(error.value).endswith("or set task.train_path and task.test_path to local files.")


def test_a_data_set_without_the_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError) as error:
        make_task("gsm8k", "openai/gsm8k").train_problems()
    assert str(error.value) == (
        "openai/gsm8k: reading a Hugging Face data set needs the package datasets. Install it with pip install "
        "'irpo-nemo[data]', or set task.train_path and task.test_path to local files."
    )
