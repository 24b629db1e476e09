"""A training session on one rank: its files, and what each option changes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from irpo_nemo.artifacts import write_records
from irpo_nemo.config import IRPOConfig, ParallelConfig, SFTConfig
from irpo_nemo.records import Demonstration, PreferencePair
from irpo_nemo.run_folder import TrainFolder
from tests.distributed.probes import export_gradients
from tests.distributed.ranks import run_on_ranks
from tests.distributed.sessions import TIMED, Session, make_session
from tests.training.tiny import make_config, make_demonstrations, make_model_folder, make_pairs, make_references

METRICS = [
    "step",
    "loss/total",
    "loss/dpo",
    "loss/nll",
    "reward/chosen",
    "reward/rejected",
    "reward/margin",
    "reward/accuracy",
    "logprob/chosen",
    "logprob/rejected",
    "logprob_per_token/chosen",
    "logprob_per_token/rejected",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "pairs_per_second",
    "mfu",
    "padding_fraction",
    "memory_gib",
]
"""The published names of metrics.jsonl."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("session") / "model")


@pytest.fixture(scope="module")
def session(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    session = make_session(tmp_path_factory.mktemp("trained"), model=model)
    session.run(make_config(checkpoint_every_steps=1, keep_checkpoints=3))
    return session


def test_every_step_leaves_a_line_of_the_published_metrics(session: Session) -> None:
    lines = [json.loads(line) for line in session.folder.train.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(sorted(line) == sorted(METRICS) for line in lines)
    assert all(isinstance(value, int | float) for line in lines for name, value in line.items() if name != "mfu")


def test_tensorboard_has_the_same_metrics(session: Session) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(session.folder.train.tensorboard))
    events.Reload()
    shown = set(METRICS) - {"step", "mfu"}  # MFU is not known without a GPU
    assert set(events.Tags()["scalars"]) == shown
    lines = session.metrics
    for name in shown - TIMED:
        assert [event.value for event in events.Scalars(name)] == pytest.approx([line[name] for line in lines])


def test_metrics_fit_together(session: Session) -> None:
    for line in session.metrics:
        assert line["loss/total"] == pytest.approx(line["loss/dpo"] + line["loss/nll"])  # type: ignore[operator]
        assert line["reward/margin"] == pytest.approx(line["reward/chosen"] - line["reward/rejected"], abs=1e-6)  # type: ignore[operator]
        assert 0 <= line["padding_fraction"] < 1  # type: ignore[operator]
        assert 0 <= line["reward/accuracy"] <= 1  # type: ignore[operator]


def test_logprobs_per_token_are_over_the_tokens_of_the_batch(session: Session) -> None:
    from irpo_nemo.training.batches import BatchOptions, GlobalBatches, examples_of_pairs

    pairs = make_pairs(21)
    batches = GlobalBatches(
        examples_of_pairs(pairs, make_references(pairs)),
        global_batch_size=8,
        options=BatchOptions(max_tokens_per_micro_batch=200),
        num_steps=5,
        seed=0,
        rank=0,
        ranks=1,
    )
    tokens = sum(len(pairs[i].chosen_token_ids) for i in batches.example_indices(0))
    first = session.metrics[0]
    assert first["logprob_per_token/chosen"] == pytest.approx(first["logprob/chosen"] * 8 / tokens)  # type: ignore[operator]


def test_training_moves_the_policy_towards_the_chosen(model: Path, tmp_path: Path) -> None:
    session = make_session(tmp_path, model=model, num_pairs=8)
    session.run(make_config(num_epochs=10, max_steps=10, optimizer={"learning_rate": 3e-3}))
    first, last = session.metrics[0], session.metrics[-1]
    assert last["loss/dpo"] < 0.3 < first["loss/dpo"]  # type: ignore[operator]
    assert last["loss/nll"] < first["loss/nll"] - 0.5  # type: ignore[operator]
    assert last["reward/accuracy"] == 1.0


def test_checkpoints_are_kept_as_many_as_asked_for(session: Session) -> None:
    assert session.checkpoints == ["step_00000003", "step_00000004", "step_00000005"]


def test_no_pairs_is_told(model: Path, tmp_path: Path) -> None:
    session = make_session(tmp_path, model=model)
    write_records(session.folder.pairs, [], PreferencePair)
    with pytest.raises(AssertionError) as caught:
        session.run(make_config())
    assert (
        f"DataError: {session.folder.pairs}: holds no pairs, so iteration 0 has nothing to learn from; "
        "pairs.json beside it says why."
    ) in str(caught.value)


def test_a_layout_that_the_ranks_do_not_fill_is_told(model: Path, tmp_path: Path) -> None:
    session = make_session(tmp_path, model=model)
    with pytest.raises(AssertionError) as caught:
        session.run(replace(make_config(), parallel=ParallelConfig(tensor_model_parallel_size=2)))
    assert (
        "ConfigError: launcher.ranks: this job has 1 ranks, but tensor_model_parallel_size x "
        "pipeline_model_parallel_size x context_parallel_size = 2 must divide them"
    ) in str(caught.value)


def test_a_warm_up_as_long_as_the_run_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        make_session(tmp_path, model=model).run(make_config(optimizer={"warmup_steps": 5}))
    assert "ConfigError: optimizer.warmup_steps: is 5, but this run has only 5 steps; set fewer" in str(caught.value)


def fine_tune(model: Path, folder: Path, watched: Path | None = None) -> None:
    from irpo_nemo.training.session import train_sft

    folder.mkdir(exist_ok=True)
    demonstrations = folder / "demonstrations.parquet"
    write_records(demonstrations, make_demonstrations(21), Demonstration)
    options = make_config(num_epochs=4, max_steps=10).training
    pairs_path = None if watched is None else str(watched)
    sft = SFTConfig(**vars(options), enabled=True, watched_pairs_path=pairs_path, num_watched_pairs=7)
    config = IRPOConfig(sft=sft)
    train_sft(
        config,
        initial=model,
        demonstrations=demonstrations,
        folder=TrainFolder(folder / "train"),
        export_to=folder / "hf",
    )


@pytest.fixture(scope="module")
def fine_tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fine_tuned")
    run_on_ranks(fine_tune, 1, model, folder)
    return folder


def test_supervised_fine_tuning_lowers_the_nll_of_demonstrations(model: Path, fine_tuned: Path) -> None:
    from transformers import LlamaForCausalLM

    lines = read_lines(fine_tuned)
    assert len(lines) == 10
    assert all(sorted(line) == sorted(METRICS) for line in lines)
    assert all(line["loss/dpo"] == 0 and line["loss/total"] == line["loss/nll"] for line in lines)
    assert lines[-1]["loss/nll"] < lines[0]["loss/nll"] - 0.2
    exported = LlamaForCausalLM.from_pretrained(fine_tuned / "hf")
    assert mean_nll(exported) < mean_nll(LlamaForCausalLM.from_pretrained(model)) - 0.2


def read_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ranks", [1, 2])
def test_watched_pairs_are_scored_after_each_step_and_not_learnt_from(
    model: Path, fine_tuned: Path, tmp_path: Path, ranks: int
) -> None:
    """Every third of 21 pairs, by transformers under the exported model."""
    from transformers import LlamaForCausalLM

    pairs = make_pairs(21)
    write_records(tmp_path / "pairs.parquet", pairs, PreferencePair)
    run_on_ranks(fine_tune, ranks, model, tmp_path / "out", tmp_path / "pairs.parquet")
    lines = read_lines(tmp_path / "out")
    names = ["watched/logprob/chosen", "watched/logprob/rejected"]
    assert all(sorted(line) == sorted([*METRICS, *names]) for line in lines)
    assert len({line[names[0]] for line in lines}) == len(lines)
    exported = LlamaForCausalLM.from_pretrained(tmp_path / "out" / "hf")
    watched = pairs[::3]
    sides = ([p.chosen_token_ids for p in watched], [p.rejected_token_ids for p in watched])
    for name, completions in zip(names, sides, strict=True):
        scores = [
            sum_logprob(exported, p.prompt_token_ids, tokens) for p, tokens in zip(watched, completions, strict=True)
        ]
        assert lines[-1][name] == pytest.approx(sum(scores) / 7, rel=1e-5)
    if ranks == 1:
        weights, plain = (load_file(folder / "hf" / "model.safetensors") for folder in (tmp_path / "out", fine_tuned))
        assert all(torch.equal(weights[key], plain[key]) for key in plain)


def test_a_file_without_pairs_to_watch_is_told(model: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "pairs.parquet", [], PreferencePair)
    with pytest.raises(AssertionError) as caught:
        run_on_ranks(fine_tune, 1, model, tmp_path / "out", tmp_path / "pairs.parquet")
    assert f"DataError: sft.watched_pairs_path: {tmp_path}/pairs.parquet holds no pairs" in str(caught.value)


@torch.no_grad()
def sum_logprob(model: Any, prompt: list[int], completion: list[int]) -> float:
    rows = model(torch.tensor([prompt + completion])).logits[0][len(prompt) - 1 : -1].log_softmax(-1)
    return float(rows[torch.arange(len(completion)), torch.tensor(completion)].sum())


@torch.no_grad()
def mean_nll(model: Any) -> float:
    """Over the demonstrations, by transformers."""
    values = []
    for item in make_demonstrations(21):
        logits = model(torch.tensor([item.prompt_token_ids + item.token_ids])).logits[0]
        rows = logits[len(item.prompt_token_ids) - 1 : -1].log_softmax(-1)
        values.append(-rows[torch.arange(len(item.token_ids)), torch.tensor(item.token_ids)].mean())
    return float(torch.stack(values).mean())


Tried = tuple[Path, dict[str, list[dict[str, float]]]]
"""Where gradients and weights are, and the metrics of each step, by option."""

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no_nll": {"loss": {"nll_weight": 0.0}},
    "no_dpo": {"loss": {"dpo_weight": 0.0}},
    "weights": {"loss": {"dpo_weight": 0.5, "nll_weight": 3.0}},
    "beta": {"loss": {"beta": 0.4}},
    "learning_rate": {"optimizer": {"learning_rate": 2e-3}},
    "cosine": {"optimizer": {"schedule": "cosine", "min_learning_rate": 1e-4}},
    "warmup": {"optimizer": {"warmup_steps": 2}},
    "warmup_cosine": {"optimizer": {"warmup_steps": 2, "schedule": "cosine"}},
    "weight_decay": {"optimizer": {"weight_decay": 0.3}},
    "adam_beta1": {"optimizer": {"adam_beta1": 0.5}},
    "adam_beta2": {"optimizer": {"adam_beta2": 0.9}},
    "adam_eps": {"optimizer": {"adam_eps": 1e-2}},
    "clip_grad": {"optimizer": {"clip_grad": 0.1}},
    "no_clip_grad": {"optimizer": {"clip_grad": 0.0}},
    "bf16": {"bf16": True},
}
"""Each is tried on the same batches, with references that are not the policy's."""
NUM_STEPS = 4


def try_options(model: Path, root: Path) -> dict[str, list[dict[str, float]]]:
    """On one rank: train with each of OPTIONS; leave every step's gradients and the weights in folders."""
    return {name: train(model, make_config(**options), root / name) for name, options in OPTIONS.items()}


def train(model: Path, config: IRPOConfig, folder: Path) -> list[dict[str, float]]:
    from irpo_nemo.training.batches import BatchOptions, GlobalBatches, examples_of_pairs
    from irpo_nemo.training.session import load_policy

    pairs = make_pairs(16)
    config.training.max_steps, config.training.use_distributed_optimizer = NUM_STEPS, False
    policy = load_policy(config, config.training, model, num_examples=16)
    policy.prepare_for_training()
    batches = GlobalBatches(
        examples_of_pairs(pairs, make_references(pairs)),
        global_batch_size=8,
        options=BatchOptions(max_tokens_per_micro_batch=200),
        num_steps=NUM_STEPS,
        seed=0,
        rank=0,
        ranks=1,
    )
    metrics = []
    for step in range(NUM_STEPS):
        policy.training_step(batches[step], step)
        metrics.append(policy.last_metrics)
        export_gradients(policy, folder / str(step))
    policy.export(folder / "weights")
    return metrics


@pytest.fixture(scope="module")
def tried(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    root = tmp_path_factory.mktemp("options")
    return root, run_on_ranks(try_options, 1, model, root)[0]


def test_loss_weights_scale_the_parts_of_the_loss(tried: Tried) -> None:
    _, metrics = tried
    parts = metrics["defaults"][0]
    expected = {
        "defaults": parts["loss/dpo"] + parts["loss/nll"],
        "no_nll": parts["loss/dpo"],
        "no_dpo": parts["loss/nll"],
        "weights": 0.5 * parts["loss/dpo"] + 3.0 * parts["loss/nll"],
    }
    assert {name: metrics[name][0]["loss/total"] for name in expected} == pytest.approx(expected)


def test_beta_scales_the_rewards(tried: Tried) -> None:
    _, metrics = tried
    assert metrics["beta"][0]["reward/margin"] == pytest.approx(4 * metrics["defaults"][0]["reward/margin"])
    assert metrics["beta"][0]["loss/dpo"] != metrics["defaults"][0]["loss/dpo"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("defaults", [1e-3] * 4),
        ("learning_rate", [2e-3] * 4),
        ("cosine", [1e-4 + 9e-4 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]),
        ("warmup", [0.0, 5e-4, 1e-3, 1e-3]),
        ("warmup_cosine", [0.0, 5e-4, 1e-3, 1e-3 * (1 + math.cos(math.pi / 2)) / 2]),
    ],
)
def test_learning_rates_follow_the_schedule(tried: Tried, name: str, expected: list[float]) -> None:
    assert [step["learning_rate"] for step in tried[1][name]] == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "bf16"])
def test_weights_follow_torch_adamw_on_the_same_gradients(tried: Tried, model: Path, name: str) -> None:
    """With the schedule's learning rates and the clipped gradients; norms, being vectors, do not decay."""
    root, metrics = tried
    options = make_config(**OPTIONS[name]).training.optimizer
    parameters = {key: tensor.requires_grad_() for key, tensor in load_file(model / "model.safetensors").items()}
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(options.adam_beta1, options.adam_beta2), eps=options.adam_eps)
    for step, line in enumerate(metrics[name]):
        gradients = load_file(root / name / str(step) / "model.safetensors")
        assert total_norm(gradients) == pytest.approx(clipped(line["grad_norm"], options.clip_grad), rel=1e-5)
        for key, parameter in parameters.items():
            parameter.grad = gradients[key]
        for group in adam.param_groups:
            group["lr"] = line["learning_rate"]
        adam.step()
    found = load_file(root / name / "weights" / "model.safetensors")
    for key, parameter in parameters.items():
        torch.testing.assert_close(found[key], parameter.detach(), rtol=1e-6, atol=1e-7)


def clipped(norm: float, limit: float) -> float:
    return min(norm, limit) if limit else norm


def total_norm(gradients: dict[str, Tensor]) -> float:
    return float(torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm())


def test_every_optimizer_option_changes_the_weights(tried: Tried) -> None:
    root, _ = tried
    weights = {name: (root / name / "weights" / "model.safetensors").read_bytes() for name in OPTIONS}
    assert len(set(weights.values())) == len(OPTIONS)


def test_bf16_stays_close_to_fp32(tried: Tried) -> None:
    _, metrics = tried
    for found, expected in zip(metrics["bf16"], metrics["defaults"], strict=True):
        assert found["loss/total"] == pytest.approx(expected["loss/total"], rel=0.02)
        assert found["loss/total"] != expected["loss/total"]
