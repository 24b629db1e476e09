"""The trial: which pairs it learns from, what it keeps, and what it measures on those that it leaves out."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from irpo_nemo.artifacts import read_json, read_records, write_records
from irpo_nemo.config import IRPOConfig, SelectionConfig
from irpo_nemo.records import PreferencePair, ReferenceLogprob
from irpo_nemo.run_folder import IterationFolder
from tests.distributed.ranks import run_on_ranks
from tests.distributed.sessions import Session, die_before, make_session
from tests.training.tiny import make_config, make_model_folder, make_pairs

NUM_PAIRS = 21
HELD_OUT = {f"problem-{i}" for i in (1, 4, 9, 16)}
LEARNED = {f"problem-{i}" for i in range(NUM_PAIRS)} - HELD_OUT
KEPT = [2, 4, 5]


def config_of(**options: Any) -> IRPOConfig:
    config = make_config(checkpoint_every_steps=3, keep_checkpoints=1, **options)
    config.selection = SelectionConfig(enabled=True, num_problems=4, every_steps=2)
    return config


@dataclass(frozen=True)
class Trial:
    model: Path
    folder: IterationFolder

    def run(self, config: IRPOConfig, ranks: int = 1, *, die_at_step: int | None = None) -> dict[str, Any]:
        return run_on_ranks(run_trial, ranks, config, self, die_at_step)[0]  # type: ignore[no-any-return]

    @property
    def weights(self) -> dict[int, bytes]:
        return {step: (self.folder.trial.model(step) / "model.safetensors").read_bytes() for step in KEPT}

    @property
    def checkpoints(self) -> list[str]:
        paths = self.folder.trial.train.checkpoints.iterdir()
        return sorted(path.name for path in paths if not path.is_symlink())


def run_trial(config: IRPOConfig, trial: Trial, die_at_step: int | None) -> dict[str, Any]:
    """On each rank."""
    from irpo_nemo.training.model import IRPOModel
    from irpo_nemo.training.trial import run_trial

    if die_at_step is not None:
        die_before(IRPOModel, "training_step", lambda policy, *_: policy.step == die_at_step)
    return run_trial(
        config,
        iteration=0,
        model=trial.model,
        pairs=trial.folder.pairs,
        reference=trial.folder.reference,
        learned=LEARNED,
        held_out=HELD_OUT,
        folder=trial.folder.trial,
    ).counts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("trial") / "model")


def make_trial(root: Path, model: Path) -> Trial:
    trial = Trial(model, IterationFolder(root))
    write_records(trial.folder.pairs, make_pairs(NUM_PAIRS), PreferencePair)
    return trial


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A learning rate that makes the held-out loss rise at last."""
    trial = make_trial(tmp_path_factory.mktemp("finished"), model)
    counts = trial.run(config_of(optimizer={"learning_rate": 2e-2}))
    assert counts == {"steps": 5, "examples": 17, "first_step": 0, "held_out_examples": 4, "models": 3}
    return trial


def test_a_model_is_kept_every_so_many_steps_and_at_the_end(finished: Trial) -> None:
    assert [path.name for path in sorted(finished.folder.trial.models.iterdir())] == [
        f"step_{step:08d}" for step in KEPT
    ]
    assert [entry["step"] for entry in read_json(finished.folder.trial.steps)] == KEPT
    assert len(set(finished.weights.values())) == 3


def test_references_are_of_all_pairs(finished: Trial) -> None:
    assert len(read_records(finished.folder.reference, ReferenceLogprob)) == 2 * NUM_PAIRS


def test_the_validation_loss_is_that_of_the_kept_model_on_the_held_out_pairs(finished: Trial) -> None:
    """By transformers, from the exported folder."""
    references = {r.candidate_id: r.logprob for r in read_records(finished.folder.reference, ReferenceLogprob)}
    pairs = [pair for pair in make_pairs(NUM_PAIRS) if pair.problem_id in HELD_OUT]
    for entry in read_json(finished.folder.trial.steps):
        losses = [pair_loss(load(finished.folder.trial.model(entry["step"])), pair, references) for pair in pairs]
        assert entry["validation_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def load(folder: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder)


def pair_loss(policy: Any, pair: PreferencePair, references: dict[str, float]) -> float:
    chosen = sum_logprobs(policy, pair.prompt_token_ids, pair.chosen_token_ids)
    rejected = sum_logprobs(policy, pair.prompt_token_ids, pair.rejected_token_ids)
    margin = 0.1 * (chosen - references[pair.chosen_id] - rejected + references[pair.rejected_id])
    return float(-torch.nn.functional.logsigmoid(margin) - chosen / len(pair.chosen_token_ids))


@torch.no_grad()
def sum_logprobs(policy: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logits = policy(torch.tensor([prompt + completion])).logits[0]
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return rows[torch.arange(len(completion)), torch.tensor(completion)].double().sum()


def test_the_checkpoint_of_the_lowest_validation_loss_is_kept_beside_the_newest(finished: Trial) -> None:
    losses = {entry["step"]: entry["validation_loss"] for entry in read_json(finished.folder.trial.steps)}
    best = min(losses, key=lambda step: losses[step])
    assert best != 5, "else the newest is the best, and nothing is shown"
    checkpoints = finished.folder.trial.train.checkpoints
    assert finished.checkpoints == [f"step_{best:08d}", "step_00000005"]
    assert (checkpoints / "best").readlink().name == f"step_{best:08d}"
    assert (checkpoints / "latest").readlink().name == "step_00000005"
    assert read_json(checkpoints / "best/checkpoint.json")["validation_loss"] == losses[best]


@pytest.mark.parametrize("step", [3, 4])
def test_a_killed_trial_ends_like_one_that_was_not(finished: Trial, step: int, model: Path, tmp_path: Path) -> None:
    trial = make_trial(tmp_path, model)
    config = config_of(optimizer={"learning_rate": 2e-2})
    with pytest.raises(AssertionError, match=f"died with exit code -{signal.SIGKILL.value}"):
        trial.run(config, die_at_step=step)
    assert trial.run(config)["first_step"] > 0
    assert trial.weights == finished.weights
    assert read_json(trial.folder.trial.steps) == read_json(finished.folder.trial.steps)
    assert trial.checkpoints == finished.checkpoints


def test_a_trial_on_two_ranks_measures_the_same(finished: Trial, model: Path, tmp_path: Path) -> None:
    trial = make_trial(tmp_path, model)
    trial.run(config_of(optimizer={"learning_rate": 2e-2}), ranks=2)
    losses, expected = (
        [entry["validation_loss"] for entry in read_json(folder.trial.steps)]
        for folder in (trial.folder, finished.folder)
    )
    assert losses == pytest.approx(expected, rel=1e-3)


def test_nothing_left_to_learn_from_is_told(model: Path, tmp_path: Path) -> None:
    trial = make_trial(tmp_path, model)
    pairs = [pair for pair in make_pairs(NUM_PAIRS) if pair.problem_id in HELD_OUT]
    write_records(trial.folder.pairs, pairs, PreferencePair)
    with pytest.raises(AssertionError) as caught:
        trial.run(config_of())
    assert (
        f"DataError: {trial.folder.pairs}: holds 4 pairs, but none of the problems that the trial of iteration 0 may "
        "learn from. Lower selection.num_problems."
    ) in str(caught.value)


def train_for(config: IRPOConfig, session: Session, count: int, schedule: int) -> dict[str, Any]:
    from irpo_nemo.training.session import Steps, train_irpo

    return train_irpo(
        config,
        iteration=0,
        model=session.model,
        pairs=session.folder.pairs,
        reference=session.folder.reference,
        folder=session.folder.train,
        export_to=session.folder.hf,
        steps=Steps(count=count, schedule=schedule),
    ).counts


def test_training_for_chosen_steps_goes_the_first_part_of_the_whole_way(model: Path, tmp_path: Path) -> None:
    """The same batches, and the learning rates of the schedule over the whole trial."""
    config = make_config(optimizer={"schedule": "cosine", "warmup_steps": 1})
    whole, part = (make_session(tmp_path / name, model=model) for name in ("whole", "part"))
    whole.run(config)
    (counts,) = run_on_ranks(train_for, 1, config, part, 3, 5)
    assert counts == {"steps": 3, "examples": 21, "first_step": 0}
    assert len(part.metrics) == 3
    assert json.dumps(part.metrics) == json.dumps(whole.metrics[:3])
