"""Reference log-probs: once per completion, equal to transformers' in every layout, and never another model's."""

import dataclasses
import gc
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from irpo_nemo.artifacts import list_parts, part_path, parts_of, read_parts, read_records, write_records
from irpo_nemo.records import PreferencePair, ReferenceLogprob
from tests.distributed.ranks import run_on_ranks
from tests.distributed.sessions import die_before, make_session
from tests.training.tiny import make_config, make_model_folder, make_pairs, make_pairs_that_share

LAYOUTS: dict[str, dict[str, int]] = {
    "tp1": {"ranks": 1},
    "tp2": {"ranks": 2, "tensor": 2},
    "pp2": {"ranks": 2, "pipeline": 2},
    "pp2_virtual2": {"ranks": 2, "pipeline": 2, "virtual": 2},
    "cp2": {"ranks": 2, "context": 2},
    "dp2": {"ranks": 2},
    "tp2_pp2": {"ranks": 4, "tensor": 2, "pipeline": 2},
}


def sharing_pairs() -> list[PreferencePair]:
    """Pairs of which two share their chosen completion."""
    first, second, *rest = make_pairs(7)
    sharing = dataclasses.replace(
        second,
        prompt_token_ids=first.prompt_token_ids,
        chosen_id=first.chosen_id,
        chosen_token_ids=first.chosen_token_ids,
    )
    return [first, sharing, *rest]


def score(model: Path, path: Path, layout: str) -> list[ReferenceLogprob]:
    from irpo_nemo.training.reference import reference_logprobs
    from irpo_nemo.training.session import load_policy

    sizes: dict[str, Any] = {key: size for key, size in LAYOUTS[layout].items() if key != "ranks"}
    config = make_config(**sizes, max_tokens_per_micro_batch=100)
    policy = load_policy(config, config.training, model, num_examples=7)
    return reference_logprobs(policy, sharing_pairs(), path, model_hash="M_t")


def score_twice(model: Path, path: Path) -> Any:
    """The second time, with the first's file changed by hand."""
    from irpo_nemo.training.reference import reference_logprobs
    from irpo_nemo.training.session import load_policy

    config = make_config()
    policy = load_policy(config, config.training, model, num_examples=7)
    pairs = sharing_pairs()
    first = reference_logprobs(policy, pairs, path, model_hash="M_t")
    changed = [dataclasses.replace(record, logprob=-1.0) for record in first]
    write_records(path, changed, ReferenceLogprob)
    same_model = reference_logprobs(policy, pairs, path, model_hash="M_t")
    other_pairs = reference_logprobs(policy, pairs[:-1], path, model_hash="M_t")
    write_records(path, changed, ReferenceLogprob)
    other_model = reference_logprobs(policy, pairs, path, model_hash="M_t+1")
    return first, same_model, other_pairs, other_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("reference") / "model")


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, float]:
    """By transformers, each completion alone and unpadded."""
    from transformers import LlamaForCausalLM

    policy = LlamaForCausalLM.from_pretrained(model)
    logprobs = {}
    for pair in sharing_pairs():
        for name, completion in (
            (pair.chosen_id, pair.chosen_token_ids),
            (pair.rejected_id, pair.rejected_token_ids),
        ):
            with torch.no_grad():
                logits = policy(torch.tensor([pair.prompt_token_ids + completion])).logits[0]
            rows = logits[len(pair.prompt_token_ids) - 1 : -1].log_softmax(-1)
            logprobs[name] = float(rows[torch.arange(len(completion)), torch.tensor(completion)].double().sum())
    return logprobs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_logprobs_equal_transformers(
    layout: str, model: Path, expected: dict[str, float], tmp_path: Path
) -> None:
    by_rank = run_on_ranks(score, LAYOUTS[layout]["ranks"], model, tmp_path / "reference.parquet", layout)
    stored = read_records(tmp_path / "reference.parquet", ReferenceLogprob)
    assert all(records == stored for records in by_rank)
    assert {record.candidate_id: record.logprob for record in stored} == pytest.approx(expected, rel=1e-6)
    tokens = {pair.chosen_id: len(pair.chosen_token_ids) for pair in sharing_pairs()}
    assert {record.candidate_id: record.num_tokens for record in stored}.items() >= tokens.items()


def test_each_completion_is_scored_once(model: Path, tmp_path: Path) -> None:
    (records,) = run_on_ranks(score, 1, model, tmp_path / "reference.parquet", "tp1")
    assert len(records) == 13 == len({record.candidate_id for record in records})


def candidates_that_share() -> list[PreferencePair]:
    """Pairs of 9 problems with several winners and losers each."""
    return make_pairs_that_share(30, seed=2)


def score_watched(model: Path, path: Path, die_in_part: int | None) -> dict[str, Any]:
    """In parts of a hundred tokens or so; notes what went through the model, and what else is in memory."""
    from irpo_nemo.training import reference
    from irpo_nemo.training.gpt import PolicyGPTModel
    from irpo_nemo.training.model import IRPOModel
    from irpo_nemo.training.session import load_policy

    reference.PART_MICRO_BATCHES = 0.25  # type: ignore[assignment]  # of micro batches of 400 tokens
    if die_in_part is not None:
        name = f"part-{die_in_part:05d}.parquet"
        die_before(reference, "write_records", lambda target, *_: target.name == name)
    config = make_config(max_tokens_per_micro_batch=100)
    policy = load_policy(config, config.training, model, num_examples=30)
    score, seen = IRPOModel.completion_logprobs, {"tokens": 0, "completions": 0, "parts": 0}

    def watch(self: IRPOModel, batch: Any) -> Any:
        answer = score(self, batch)
        assert answer is not None and not any(sums.requires_grad for sums in answer)
        seen["tokens"] += sum(micro.num_tokens for micro in batch)
        seen["completions"] += sum(len(micro.completion_lengths) for micro in batch)
        seen["parts"] += 1
        return answer

    IRPOModel.completion_logprobs = watch
    reference.reference_logprobs(policy, candidates_that_share(), path, model_hash="M_t")
    models = [thing for thing in gc.get_objects() if isinstance(thing, PolicyGPTModel)]
    has_gradients = any(parameter.grad is not None for parameter in policy.parameters())
    return {**seen, "models": len(models), "gradients": has_gradients, "optimizer": policy.megatron_optimizer}


def test_prompts_and_completions_go_through_the_model_once_without_gradients(model: Path, tmp_path: Path) -> None:
    """And through the one model there is: no copy of it, no optimizer yet."""
    pairs = candidates_that_share()
    sides = [(p.prompt_token_ids, tokens) for p in pairs for tokens in (p.chosen_token_ids, p.rejected_token_ids)]
    completions = {(tuple(prompt), tuple(tokens)) for prompt, tokens in sides}
    prompts = {prompt for prompt, _ in completions}
    (seen,) = run_on_ranks(score_watched, 1, model, tmp_path / "reference.parquet", None)
    assert seen["completions"] == len(completions) < len(sides)
    assert seen["tokens"] == sum(map(len, prompts)) + sum(len(tokens) - 1 for _, tokens in completions)
    assert (seen["models"], seen["gradients"], seen["optimizer"]) == (1, False, None)


def test_a_killed_pass_goes_on_after_the_parts_that_are_written(model: Path, tmp_path: Path) -> None:
    (whole,) = run_on_ranks(score_watched, 1, model, tmp_path / "whole.parquet", None)
    assert whole["parts"] > 4
    path = tmp_path / "killed.parquet"
    with pytest.raises(AssertionError, match=f"died with exit code -{signal.SIGKILL.value}"):
        run_on_ranks(score_watched, 1, model, path, 3)
    assert not path.exists()
    assert [part.name for part in list_parts(parts_of(path))] == [f"part-{number:05d}.parquet" for number in range(3)]
    written = list(read_parts(parts_of(path), ReferenceLogprob))
    (rest,) = run_on_ranks(score_watched, 1, model, path, None)
    assert rest["parts"] == whole["parts"] - 3
    assert rest["completions"] == whole["completions"] - len(written) < whole["completions"]
    assert read_records(path, ReferenceLogprob) == read_records(tmp_path / "whole.parquet", ReferenceLogprob)
    assert not parts_of(path).exists()


def test_parts_of_another_model_are_not_used(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "reference.parquet"
    (records,) = run_on_ranks(score, 1, model, path, "tp1")
    path.unlink()
    other = [dataclasses.replace(record, model_hash="other", logprob=-1.0) for record in records]
    write_records(part_path(parts_of(path), 0), other, ReferenceLogprob)
    (again,) = run_on_ranks(score, 1, model, path, "tp1")
    assert again == records


def test_micro_batches_are_larger_than_in_training_up_to_a_limit() -> None:
    from irpo_nemo.training.reference import _reference_options

    sizes = {100: 400, 4096: 16384, 8192: 16384, 32768: 32768}
    for training, reference in sizes.items():
        config = make_config(max_tokens_per_micro_batch=training)
        options = _reference_options(config.training, config.parallel)
        assert options.max_tokens_per_micro_batch == reference


def test_a_file_is_used_again_only_for_the_same_model_and_pairs(model: Path, tmp_path: Path) -> None:
    ((first, same_model, other_pairs, other_model),) = run_on_ranks(score_twice, 1, model, tmp_path / "r.parquet")
    assert {record.logprob for record in same_model} == {-1.0}
    assert len(other_pairs) == 11 and -1.0 not in {record.logprob for record in other_pairs}
    assert [record.logprob for record in other_model] == [record.logprob for record in first]
    assert {record.model_hash for record in other_model} == {"M_t+1"}


def test_training_refuses_a_reference_that_other_weights_made(model: Path, tmp_path: Path) -> None:
    """The file claims to be M_t's, so only its numbers tell."""
    session = make_session(tmp_path, model=model)
    session.run(make_config(max_steps=1))
    honest = read_records(session.folder.reference, ReferenceLogprob)
    other = [
        dataclasses.replace(record, logprob=record.logprob * (1.01 if i % 2 else 1.0))
        for i, record in enumerate(honest)
    ]
    write_records(session.folder.reference, other, ReferenceLogprob)
    (session.folder.train.checkpoints / "latest").unlink()
    with pytest.raises(AssertionError) as caught:
        session.run(make_config(max_steps=1))
    assert "ArtifactError: step 0: loss/dpo is 0.7" in str(caught.value)
    assert (
        ", but must be ln 2 = 0.693147 because the policy still equals the reference. The reference log-probs belong "
        "to other weights; delete reference.parquet and run again."
    ) in str(caught.value)
    assert not (session.folder.train.checkpoints / "latest").exists()


def test_weights_that_are_not_finite_are_refused(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "model"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        AssertionError, match="ModelError: reference log-probs: not all are finite; the model's weights"
    ):
        run_on_ranks(score, 1, broken, tmp_path / "reference.parquet", "tp1")
