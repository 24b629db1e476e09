"""Examples in the prompt, development problems, and how options of a task may not be combined."""

from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.config import IRPOConfig, ModelConfig, TaskConfig
from irpo_nemo.config_checks import check_relations
from irpo_nemo.tasks import load_task
from tests.tasks.files import error_of, make_task, write_rows

TEMPLATE = "Solve the {last}one.\n{shots}Q: {question}\nA:"


def write_problems(path: Path, count: int, *, first: int = 0) -> Path:
    rows = [
        {"id": f"n{n}", "question": f"{n}+1?", "answer": n + 1, "solution": f"Count to {n + 1}."} for n in range(count)
    ]
    return write_rows(path, *rows[first:])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_problems(tmp_path / "mine.jsonl", 50)


def ids_of(problems: list[Any]) -> list[str]:
    return [problem.problem_id for problem in problems]


def test_named_examples_stand_in_the_prompt_and_leave_the_training_problems(path: Path) -> None:
    task = make_task("jsonl", path, shot_ids=["n7", "n2"], prompt_template=TEMPLATE)
    problems = task.train_problems()
    assert len(problems) == 48
    assert not {"n7", "n2"} & set(ids_of(problems))
    assert task.prompt(problems[0]) == (
        "Solve the last one.\n"
        "Q: 7+1?\nA: Count to 8.\nFinal answer: 8\n"
        "Q: 2+1?\nA: Count to 3.\nFinal answer: 3\n"
        "Q: 0+1?\nA:"
    )


def test_fewer_examples_than_are_named_can_be_shown(path: Path) -> None:
    task = make_task("jsonl", path, shot_ids=["n7", "n2"], num_shots=1, prompt_template=TEMPLATE)
    assert "7+1?" in task.prompt(task.train_problems()[0])
    assert "n2" in ids_of(task.train_problems())
    none = make_task("jsonl", path, shot_ids=["n7", "n2"], num_shots=0, prompt_template=TEMPLATE)
    assert none.prompt(none.train_problems()[0]) == "Solve the one.\nQ: 0+1?\nA:"


def test_examples_of_a_file_of_their_own_stand_in_the_prompt(path: Path, tmp_path: Path) -> None:
    shots = write_rows(tmp_path / "shots.jsonl", {"question": "9+1?", "answer": 10, "solution": "Ten."})
    task = make_task("jsonl", path, shots_path=str(shots), prompt_template=TEMPLATE)
    problems = task.train_problems()
    assert "n9" not in ids_of(problems)
    assert len(problems) == 49
    assert task.prompt(problems[0]).startswith("Solve the last one.\nQ: 9+1?\nA: Ten.\nFinal answer: 10\nQ: 0+1?")
    assert task.data_files() == [path, path, shots]


def test_examples_we_pick_depend_on_the_questions_only(path: Path, tmp_path: Path) -> None:
    task = make_task("jsonl", path, num_shots=3)
    lines = path.read_text().splitlines()
    turned = write_rows(tmp_path / "turned.jsonl", *reversed(lines))
    other = make_task("jsonl", turned, num_shots=3, seed=5)
    problem = task.test_problems()[0]
    assert task.prompt(problem) == other.prompt(problem)
    assert task.prompt(problem).count("Question:") == 4


def test_braces_of_a_question_stay_as_they_are(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", {"question": "{last} {shots} {question}?", "answer": 1})
    task = make_task("jsonl", path, prompt_template=TEMPLATE)
    assert task.prompt(task.train_problems()[0]) == "Solve the one.\nQ: {last} {shots} {question}?\nA:"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shot_ids": ["x"]},
            "task.shot_ids: names 'x', but no training problem has that id; the first has 'n0'. "
            "Name others, or leave task.shot_ids out.",
        ),
        ({"num_shots": 60}, "task.num_shots: is 60, but only 50 examples were found. Lower it."),
        (
            {"num_dev_problems": 50},
            "task.num_dev_problems: is 50, but there are only 50 training problems to take them from. Lower it.",
        ),
    ],
)
def test_what_the_problems_cannot_give_is_an_error(path: Path, options: dict[str, Any], message: str) -> None:
    assert error_of(make_task("jsonl", path, **options)) == message


def test_an_example_without_solution_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", {"id": "a", "question": "1+1?", "answer": 2})
    assert error_of(make_task("jsonl", path, shot_ids=["a"])) == (
        "a: has no solution, but an example in the prompt needs one. Name another."
    )


def test_development_problems_are_drawn_by_the_seed_and_never_trained_on(path: Path) -> None:
    task = make_task("jsonl", path, num_dev_problems=10)
    train, dev = ids_of(task.train_problems()), ids_of(task.dev_problems())
    assert (len(train), len(dev)) == (40, 10)
    assert sorted(train + dev) == sorted(f"n{n}" for n in range(50))
    assert ids_of(make_task("jsonl", path, num_dev_problems=10).dev_problems()) == dev
    assert ids_of(make_task("jsonl", path, num_dev_problems=10, seed=1).dev_problems()) != dev
    assert {prompt for prompt, _ in task.demonstrations()} == {
        task.prompt(problem) for problem in task.train_problems()
    }


def test_a_question_asked_twice_stands_on_one_side(tmp_path: Path) -> None:
    rows = [{"question": f"{n % 10}+1?", "answer": n % 10 + 1} for n in range(20)]
    for seed in range(5):
        task = make_task("jsonl", write_rows(tmp_path / "mine.jsonl", *rows), num_dev_problems=5, seed=seed)
        train, dev = ({p.question for p in side} for side in (task.train_problems(), task.dev_problems()))
        assert not train & dev
        assert len(task.dev_problems()) == 5


def test_measuring_on_development_problems_leaves_the_test_set_unread(path: Path, tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.jsonl")
    task = make_task("jsonl", path, num_dev_problems=10, evaluate_on="dev", test_path=absent, max_test_problems=4)
    assert task.test_problems() == task.dev_problems()[:4]
    assert task.data_files() == [path]


def test_a_development_set_of_its_own_is_read(path: Path, tmp_path: Path) -> None:
    dev = write_problems(tmp_path / "dev.jsonl", 53, first=50)
    task = make_task("jsonl", path, dev_path=str(dev), evaluate_on="dev")
    assert ids_of(task.test_problems()) == ["n50", "n51", "n52"]
    assert len(task.train_problems()) == 50
    assert task.data_files() == [path, dev]


def test_the_embedded_task_holds_development_problems_out() -> None:
    plain = load_task(IRPOConfig())
    task = load_task(IRPOConfig(task=TaskConfig(num_dev_problems=30, evaluate_on="dev")))
    assert len(task.train_problems()) + 30 == len(plain.train_problems())
    assert len(task.test_problems()) == 30
    assert plain.dev_problems() == []


def test_the_chat_template_brings_the_models_turn_so_a_solution_needs_no_space(path: Path) -> None:
    task = make_task("jsonl", path, chat_template="model")
    assert task.gold_completion(task.train_problems()[0]) == "Count to 1.\nFinal answer: 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"evaluate_on": "dev"},
            "task.evaluate_on: is dev, but there is no development set; set task.num_dev_problems or task.dev_path",
        ),
        (
            {"dev_path": "d.jsonl", "num_dev_problems": 3},
            "task.num_dev_problems: is 3, but task.dev_path names a set; leave one out",
        ),
        (
            {"shot_ids": ["a"], "shots_path": "s.jsonl"},
            "task.shot_ids: is ['a'], but task.shots_path names the examples; leave one out",
        ),
        (
            {"num_shots": 2, "prompt_template": "{question} {shots}"},
            "task.prompt_template: has no {shots} before {question} for examples; add it, or set task.num_shots=0",
        ),
        (
            {"name": "arithmetic", "num_shots": 2},
            "task.num_shots: is 2, but task arithmetic makes its own problems; leave it out",
        ),
        (
            {"test_path": None},
            "task.test_path: is null, but task jsonl needs a file or a Hugging Face data set name",
        ),
    ],
)
def test_options_that_do_not_go_together_are_a_mistake(options: dict[str, Any], message: str) -> None:
    task = TaskConfig(**{"name": "jsonl", "train_path": "a.jsonl", "test_path": "b.jsonl", **options})
    assert check_relations(IRPOConfig(task=task, model=ModelConfig(path="m"))) == [message]


def test_a_model_of_random_weights_has_no_chat_template() -> None:
    config = IRPOConfig(task=TaskConfig(chat_template="model"))
    config.sft.enabled = True
    assert check_relations(config) == [
        "task.chat_template: is model, but a model of random weights has none; set none, or name model.path"
    ]
