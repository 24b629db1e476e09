import math
import re
import subprocess
import sys

import pytest

from irpo_nemo.config import ArithmeticConfig, IRPOConfig, TaskConfig
from irpo_nemo.errors import ConfigError
from irpo_nemo.grading import numeric
from irpo_nemo.records import Problem
from irpo_nemo.tasks import load_task
from tests.grading.problems import gold_problem


def small_config(seed: int = 0, **options: int | float | str) -> IRPOConfig:
    sizes = {"num_train_problems": 50, "num_test_problems": 40, "num_demonstrations": 2000}
    return IRPOConfig(seed=seed, task=TaskConfig(arithmetic=ArithmeticConfig(**{**sizes, **options})))  # type: ignore[arg-type]


def recompute(question: str) -> list[int]:
    """The running totals of a story, read from its words."""
    gains = ("buys", "finds", "gets", "makes", "receives", "wins")
    totals = [int(re.findall(r"has (\d+)", question)[0])]
    for verb, amount in re.findall(r"(\w+) (\d+)\.", question.split(". ", 1)[1]):
        totals.append(totals[-1] + (int(amount) if verb in gains else -int(amount)))
    return totals


def test_stories_say_what_their_answers_count() -> None:
    task = load_task(small_config())
    for problem in task.train_problems() + task.test_problems():
        totals = recompute(problem.question)
        assert str(totals[-1]) == problem.gold_answer
        assert min(totals) >= 0
        assert 3 <= len(totals) - 1 <= 5


def test_steps_of_a_solution_are_true_and_lead_from_one_to_the_next() -> None:
    for problem in load_task(small_config()).train_problems():
        assert problem.solution is not None
        *steps, final = problem.solution.split("\n")
        total = recompute(problem.question)[0]
        for step in steps:
            left, sign, right, result = re.fullmatch(r"(\d+)([+-])(\d)=(\d+)", step).groups()  # type: ignore[union-attr]
            assert int(left) == total
            total += int(sign + right)
            assert int(result) == total
        assert final == f"Final answer: {total}"


def test_gold_completions_and_demonstrations_are_correct() -> None:
    task = load_task(small_config())
    for problem in task.train_problems():
        grade = numeric.grade(problem, task.gold_completion(problem) or "")
        assert (grade.verdict, grade.layer) == ("correct", "final_answer")
    for prompt, completion in task.demonstrations():
        assert numeric.grade(gold_problem(str(recompute(prompt)[-1])), completion).verdict == "correct"


def test_train_test_and_demonstration_stories_are_disjoint_and_different() -> None:
    task = load_task(small_config())
    prompts = [task.prompt(problem) for problem in task.train_problems() + task.test_problems()]
    prompts += [prompt for prompt, _ in task.demonstrations()]
    assert len(prompts) == len(set(prompts)) == 50 + 40 + 2000


def manner_of(completion: str) -> str:
    if "\n...\n" in completion:
        return "partial"
    return "worked" if "\n" in completion else "terse"


def test_demonstrations_come_in_the_shares_asked_for() -> None:
    manners = [manner_of(completion) for _, completion in load_task(small_config()).demonstrations()]
    for manner, share in (("terse", 0.45), ("partial", 0.25), ("worked", 0.30)):
        deviation = math.sqrt(share * (1 - share) / len(manners))
        assert abs(manners.count(manner) / len(manners) - share) < 4 * deviation


def test_shares_of_one_leave_nothing_else() -> None:
    config = small_config(terse_share=0.0, partial_share=1.0)
    assert {manner_of(completion) for _, completion in load_task(config).demonstrations()} == {"partial"}


def test_same_seed_same_stories_other_seed_other_stories() -> None:
    def stories(seed: int) -> tuple[list[Problem], list[Problem], list[tuple[str, str]]]:
        task = load_task(small_config(seed))
        return task.train_problems(), task.test_problems(), list(task.demonstrations())

    assert stories(0) == stories(0)
    assert not {problem.question for problem in stories(0)[0]} & {problem.question for problem in stories(1)[0]}


def test_stories_of_a_seed_stay_what_they_are() -> None:
    """Changing how stories are drawn changes the numbers of every run: do it knowingly."""
    first = load_task(small_config()).test_problems()[0]
    assert first == Problem(
        problem_id="test-0",
        question="Eva has 2 stamps. Eva makes 3. Eva buys 2. Eva gets 6. Eva makes 6. How many stamps does Eva have?",
        gold_answer="19",
        solution="2+3=5\n5+2=7\n7+6=13\n13+6=19\nFinal answer: 19",
    )


def test_more_train_problems_keep_the_test_problems_and_the_first_train_problems() -> None:
    few, many = load_task(small_config()), load_task(small_config(num_train_problems=80, num_demonstrations=10))
    assert many.test_problems() == few.test_problems()
    assert many.train_problems()[:50] == few.train_problems()


def test_max_problems_keep_the_first() -> None:
    config = small_config()
    config.task.max_train_problems, config.task.max_test_problems = 3, 2
    task, whole = load_task(config), load_task(small_config())
    assert task.train_problems() == whole.train_problems()[:3]
    assert task.test_problems() == whole.test_problems()[:2]


def test_prompt_template_is_used_as_it_stands() -> None:
    config = small_config()
    config.task.prompt_template = "{json} {question} =>"
    task = load_task(config)
    problem = task.test_problems()[0]
    assert task.prompt(problem) == f"{{json}} {problem.question} =>"
    assert next(iter(task.demonstrations()))[0].startswith("{json} ")


def test_too_few_different_stories_are_an_error() -> None:
    config = small_config(min_operations=1, max_operations=1, min_operand=2, max_operand=2, num_demonstrations=20000)
    with pytest.raises(ConfigError, match=r"^task\.arithmetic: only \d+ different stories were found, but 20090 are"):
        list(load_task(config).demonstrations())


def test_importing_the_tasks_imports_nothing_heavy() -> None:
    code = "import sys, irpo_nemo.tasks; print(*{'torch', 'transformers', 'pyarrow', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_gold_demonstrations_are_the_worked_train_problems() -> None:
    task = load_task(small_config(demonstrations="gold"))
    wanted = [(task.prompt(problem), problem.solution) for problem in task.train_problems()]
    assert list(task.demonstrations()) == wanted
    assert wanted[0] not in set(load_task(small_config()).demonstrations())
