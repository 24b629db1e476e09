"""A tiny Llama, and pairs whose completions have very different lengths, for tests of training.

Made by transformers and by hand; nothing of ours that is under test takes part, besides the records.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from irpo_nemo.config import IRPOConfig, LossConfig, OptimizerConfig, ParallelConfig, TrainingConfig
from irpo_nemo.records import Demonstration, PreferencePair, ReferenceLogprob

SHAPE: dict[str, Any] = {
    "vocab_size": 45,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.1,
}
EOS = 1
LENGTHS = (1, 60, 7, 33, 2, 18, 48, 5)
"""Completion tokens, end-of-sequence included; the chosen go through these forwards, the rejected backwards."""


def make_model_folder(folder: Path, *, tied: bool = False, seed: int = 0, max_positions: int = 96) -> Path:
    """Random weights as a Hugging Face folder; norms away from 1, which would hide a mix-up."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = SHAPE | {"max_position_embeddings": max_positions}
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied, eos_token_id=EOS))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def make_pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    """Random token ids; every completion ends with EOS, and none is named by two pairs."""
    rng = random.Random(seed)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(2, SHAPE["vocab_size"]) for _ in range(length)]

    return [
        PreferencePair(
            pair_id=f"pair-{i}",
            problem_id=f"problem-{i}",
            prompt_token_ids=tokens(rng.randint(1, 12)),
            chosen_id=f"problem-{i}/sample/0",
            chosen_token_ids=[*tokens(LENGTHS[i % len(LENGTHS)] - 1), EOS],
            rejected_id=f"problem-{i}/sample/1",
            rejected_token_ids=[*tokens(LENGTHS[-1 - (i + i // len(LENGTHS)) % len(LENGTHS)] - 1), EOS],
        )
        for i in range(count)
    ]


def make_pairs_that_share(
    count: int, seed: int = 0, prompt_lengths: Sequence[int] = (1, 3, 12, 30)
) -> list[PreferencePair]:
    """Pairs of problems with 1 to 4 winners and losers each, paired around; one loser begins with a whole winner."""
    rng = random.Random(seed)
    lengths = iter(LENGTHS * count)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(2, SHAPE["vocab_size"]) for _ in range(length)]

    pairs: list[PreferencePair] = []
    for problem in range(count):
        prompt = tokens(rng.choice(prompt_lengths))
        winners, losers = (
            [[*tokens(next(lengths) - 1), EOS] for _ in range(rng.randint(1, 4))] for _ in ("winners", "losers")
        )
        losers[0] = [*winners[0][:-1], *tokens(3), EOS]
        for i in range(max(len(winners), len(losers))):
            winner, loser = i % len(winners), i % len(losers)
            pairs.append(
                PreferencePair(
                    pair_id=f"problem-{problem}/{i}",
                    problem_id=f"problem-{problem}",
                    prompt_token_ids=prompt,
                    chosen_id=f"problem-{problem}/sample/{winner}",
                    chosen_token_ids=winners[winner],
                    rejected_id=f"problem-{problem}/sample/{len(winners) + loser}",
                    rejected_token_ids=losers[loser],
                )
            )
    return pairs[:count]


def make_references(pairs: Sequence[PreferencePair], model_hash: str = "other") -> list[ReferenceLogprob]:
    """Log-probs as no policy has them, so that rewards differ from 0 and from pair to pair."""
    rng = random.Random(1)
    completions = {
        candidate_id: token_ids
        for pair in pairs
        for candidate_id, token_ids in (
            (pair.chosen_id, pair.chosen_token_ids),
            (pair.rejected_id, pair.rejected_token_ids),
        )
    }
    return [
        ReferenceLogprob(
            candidate_id=candidate_id,
            model_hash=model_hash,
            logprob=-3.9 * len(token_ids) + rng.uniform(-10, 10),
            num_tokens=len(token_ids),
        )
        for candidate_id, token_ids in completions.items()
    ]


def make_demonstrations(count: int) -> list[Demonstration]:
    """The chosen sides of `make_pairs`."""
    return [
        Demonstration(
            demonstration_id=pair.pair_id, prompt_token_ids=pair.prompt_token_ids, token_ids=pair.chosen_token_ids
        )
        for pair in make_pairs(count)
    ]


def make_config(
    *,
    tensor: int = 1,
    pipeline: int = 1,
    virtual: int = 1,
    context: int = 1,
    sequence: bool = False,
    overlap: bool | None = None,
    optimizer: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    **training: Any,
) -> IRPOConfig:
    """A configuration of 5 steps of 8 pairs; `training` and the dictionaries hold what differs."""
    options = {"global_batch_size": 8, "max_tokens_per_micro_batch": 200, "num_epochs": 3, "max_steps": 5} | training
    return IRPOConfig(
        loss=LossConfig(**(loss or {})),
        training=TrainingConfig(**options, optimizer=OptimizerConfig(**({"learning_rate": 1e-3} | (optimizer or {})))),
        parallel=ParallelConfig(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            virtual_pipeline_model_parallel_size=virtual,
            context_parallel_size=context,
            sequence_parallel=sequence,
            overlap_data_parallel=overlap,
        ),
    )
