"""Which step a trial's models speak for, and which problems it leaves out."""

import pytest

from irpo_nemo.config_files import load_config
from irpo_nemo.errors import DataError
from irpo_nemo.metrics import wilson_interval
from irpo_nemo.selection import TriedModel, choose_step, split_problems
from irpo_nemo.tasks import load_task


def tried(step: int, correct: int, *, loss: float | None = None) -> TriedModel:
    return TriedModel(step=step, accuracy=correct / 8, accuracy_ci95=wilson_interval(correct, 8), validation_loss=loss)


def test_the_most_accurate_model_says_how_many_steps() -> None:
    assert choose_step([tried(2, 3), tried(4, 5), tried(6, 4)]) == 4


def test_of_equally_accurate_models_the_earliest_is_chosen_whatever_its_loss() -> None:
    assert choose_step([tried(2, 3), tried(6, 5, loss=0.1), tried(4, 5, loss=0.9), tried(8, 5)]) == 4


def test_held_out_problems_are_as_many_as_asked_for_and_no_others_are_lost() -> None:
    config = load_config("quickstart", ["selection.num_problems=30", "task.arithmetic.num_train_problems=100"])
    task = load_task(config)
    learned, held_out = split_problems(config, task)
    assert (len(learned), len(held_out)) == (70, 30)
    every = {problem.problem_id for problem in task.train_problems()}
    assert {problem.problem_id for problem in learned + held_out} == every
    assert split_problems(config, load_task(config)) == (learned, held_out)


def test_too_many_held_out_problems_are_told() -> None:
    config = load_config("quickstart", ["selection.num_problems=100", "task.arithmetic.num_train_problems=100"])
    with pytest.raises(DataError) as caught:
        split_problems(config, load_task(config))
    assert str(caught.value) == (
        "selection.num_problems: is 100, but there are only 100 training problems to take them from. Lower it."
    )
