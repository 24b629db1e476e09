"""The select stage on a trial whose models' completions are known: parts that a killed start has left."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from irpo_nemo.artifacts import hash_model_folder, read_json, read_manifest, write_json
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import load_config
from irpo_nemo.errors import ArtifactError
from irpo_nemo.model_zero import make_initial_model
from irpo_nemo.pipeline import find_step
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling.parts import sample_split
from irpo_nemo.sampling.sampler import Completion, SamplingRequest
from irpo_nemo.selection import split_problems
from irpo_nemo.stages.frame import run_stage
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import load_tokenizer
from tests.test_pipeline import finish_until

SOLVED = {2: 1, 4: 3, 6: 2, 7: 3}
"""Step -> how many of the 4 held-out problems its model solves."""

OPTIONS = [
    "task.arithmetic.num_train_problems=12",
    "task.arithmetic.num_test_problems=4",
    "task.arithmetic.num_demonstrations=20",
    "model.hidden_size=16",
    "model.num_layers=1",
    "model.ffn_hidden_size=16",
    "num_iterations=1",
    "sampler.problems_per_part=3",
    "selection.enabled=true",
    "selection.num_problems=4",
]


class KnownAnswers:
    """A sampler that gives the right answer to the first so many problems, and a wrong one to the others."""

    window = 0
    honours_seeds = True

    def __init__(self, gold_answers: dict[str, str], num_solved: int) -> None:
        self.right = dict(list(gold_answers.items())[:num_solved])

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        answers = (self.right.get(request.problem_id, "no idea") for request in requests)
        return [Completion(token_ids=[1], text=f"Final answer: {answer}", finish_reason="stop") for answer in answers]

    def close(self) -> None: ...


@pytest.fixture
def config(tmp_path: Path) -> IRPOConfig:
    """A run whose iteration 0 waits for its trial's models to be judged; all of them have drawn their completions."""
    loaded = load_config("quickstart", [f"run_root={tmp_path}", *OPTIONS])
    loaded.evaluation.num_samples = 0
    task = load_task(loaded)
    _, held_out = split_problems(loaded, task)
    gold_answers = {problem.problem_id: problem.gold_answer for problem in held_out}
    trial = RunFolder(loaded.run_folder).iteration(0).trial
    make_initial_model(loaded, tmp_path / "model")
    for step, num_solved in SOLVED.items():
        shutil.copytree(tmp_path / "model", trial.model(step))
        (trial.model(step) / "step.json").write_text(str(step))
        sample_split(
            lambda solved=num_solved: KnownAnswers(gold_answers, solved),
            load_tokenizer(trial.model(step), trust_remote_code=False),
            task,
            loaded,
            iteration=0,
            split="test",
            folder=trial.samples(step),
            model_hash=hash_model_folder(trial.model(step)),
            problems=held_out,
        )
    finish_until(loaded, "iteration 0 select")
    trial.steps.rmdir()  # which stands for it
    write_json(trial.steps, [{"step": step, "validation_loss": 1 / step} for step in SOLVED])
    step = find_step(loaded, "select", 0)
    write_json(step.ticket, {"settings": json.loads(json.dumps(step.settings)), "inputs": step.inputs})
    return loaded


def test_the_step_of_the_most_accurate_model_is_chosen_and_of_equal_ones_the_earliest(config: IRPOConfig) -> None:
    run_stage(config, "select", 0)
    folder = RunFolder(config.run_folder).iteration(0)
    found = read_json(folder.selection)
    assert (found["chosen_step"], found["trial_steps"], found["num_problems"]) == (4, 7, 4)
    assert {tried["step"]: tried["accuracy"] for tried in found["tried"]} == {2: 0.25, 4: 0.75, 6: 0.5, 7: 0.75}
    assert [tried["validation_loss"] for tried in found["tried"]] == [1 / step for step in SOLVED]
    manifest = read_manifest(folder.manifest("select"))
    assert manifest is not None
    assert manifest.counts["summary"] == ["4 of 7 steps", "75.0% of 4 held-out problems"]


def test_only_the_best_model_stays_and_a_stage_killed_after_that_ends_the_same(config: IRPOConfig) -> None:
    run_stage(config, "select", 0)
    folder = RunFolder(config.run_folder).iteration(0)
    assert [path.name for path in folder.trial.models.iterdir()] == ["step_00000004"]
    before = read_manifest(folder.manifest("select"))
    folder.manifest("select").unlink()
    run_stage(config, "select", 0)
    after = read_manifest(folder.manifest("select"))
    assert before is not None and after is not None
    assert (after.outputs, after.counts) == (before.outputs, before.counts)


def test_a_model_that_is_gone_is_told(config: IRPOConfig) -> None:
    folder = RunFolder(config.run_folder).iteration(0)
    shutil.rmtree(folder.trial.model(6))
    with pytest.raises(ArtifactError) as caught:
        run_stage(config, "select", 0)
    assert str(caught.value) == (
        f"{folder.trial.model(6)}: is gone, so it cannot be measured. Delete {folder.manifest('trial')} to run the "
        "trial again."
    )
