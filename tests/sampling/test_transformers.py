import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from irpo_nemo.errors import ConfigError, ModelError
from irpo_nemo.sampling import Completion, SamplingRequest, open_sampler
from irpo_nemo.sampling.ordering import batch_numbers
from irpo_nemo.sampling.transformers import choose_tokens, draw_uniforms, keep_top_p, stop_token_ids
from tests.sampling.conftest import make_config

NUM_DRAWS = 200_000
CHI_SQUARE_999_DF4 = 18.467
"""0.1 % of chi-square values with 4 degrees of freedom are larger."""


def make_requests(*, temperature: float = 1.0, copies: int = 3, max_new_tokens: int = 10) -> list[SamplingRequest]:
    """Requests with prompts of 3 to 12 tokens, `copies` for each prompt."""
    generator = random.Random(1)
    prompts = [[0, *generator.choices(range(3, 250), k=length)] for length in (2, 5, 5, 8, 11)]
    return [
        SamplingRequest(
            candidate_id=f"{number}/sample/{copy}",
            problem_id=str(number),
            kind="sample",
            index=copy,
            prompt_token_ids=prompt,
            temperature=temperature,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            seed=1000 * number + copy,
        )
        for number, prompt in enumerate(prompts)
        for copy in range(copies)
    ]


def generate(folder: Path, requests: Sequence[SamplingRequest], *, batch_size: int = 16) -> list[Completion]:
    sampler = open_sampler(make_config(batch_size=batch_size), folder)
    try:
        return sampler.generate(requests)
    finally:
        sampler.close()


def chi_square(counts: Sequence[int], probabilities: Sequence[float]) -> float:
    total = sum(counts)
    return sum((c - total * p) ** 2 / (total * p) for c, p in zip(counts, probabilities, strict=True))


def draw(logits: Sequence[float], *, temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
    """How often each token is drawn."""
    uniform = torch.from_numpy(np.random.Generator(np.random.PCG64(3)).random(NUM_DRAWS))
    rows = torch.tensor(logits).expand(NUM_DRAWS, -1)
    tokens = choose_tokens(rows, torch.full((NUM_DRAWS,), temperature), torch.full((NUM_DRAWS,), top_p), uniform)
    return torch.bincount(tokens, minlength=len(logits)).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = [2.0, -1.0, 0.5, 1.0, 0.0]
    expected = torch.softmax(torch.tensor(logits) / temperature, dim=-1).tolist()
    assert chi_square(draw(logits, temperature=temperature), expected) < CHI_SQUARE_999_DF4


def test_top_p_keeps_the_smallest_set_of_likeliest_tokens() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    for top_p, kept in ((0.5, [1]), (0.51, [1, 3]), (0.75, [1, 3]), (0.9, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        assert keep_top_p(probabilities, torch.tensor([top_p])).nonzero()[:, 1].tolist() == kept


def test_top_p_draws_in_proportion_to_what_is_kept() -> None:
    counts = draw(np.log([0.1, 0.5, 0.15, 0.25]).tolist(), top_p=0.75)
    assert counts[0] == counts[2] == 0
    assert chi_square([counts[1], counts[3]], [2 / 3, 1 / 3]) < 10.83  # 0.1 % with 1 degree of freedom


def test_extreme_uniform_numbers_never_choose_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]]).expand(2, -1)
    uniform = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert choose_tokens(logits, torch.ones(2), torch.ones(2), uniform).tolist() == [1, 2]


def test_temperature_0_takes_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [4.0, 3.0, 2.0]])
    uniform = torch.full((2,), 0.999, dtype=torch.float64)
    assert choose_tokens(logits, torch.zeros(2), torch.ones(2), uniform).tolist() == [1, 0]


def test_uniform_numbers_belong_to_the_seed_alone() -> None:
    requests = make_requests()
    together, alone = draw_uniforms(requests), draw_uniforms(requests[4:5])
    assert np.array_equal(together[4], alone[0])
    assert len(np.unique(together)) == together.size


def test_greedy_decoding_equals_transformers_generate(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    for request, completion in zip(
        requests := make_requests(temperature=0.0, copies=1), generate(model_folder, requests), strict=True
    ):
        prompt = torch.tensor([request.prompt_token_ids])
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=10)
        assert completion.token_ids == expected[0, prompt.shape[1] :].tolist()


def test_sampling_equals_a_plain_loop_over_whole_sequences(model_folder: Path) -> None:
    """No cache, no padding, no batch, no shared prompts."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    requests = make_requests(temperature=0.7)
    completions = generate(model_folder, requests)
    for request, completion in list(zip(requests, completions, strict=True))[::4]:
        uniforms = torch.from_numpy(draw_uniforms([request]))
        sequence = list(request.prompt_token_ids)
        for step in range(len(completion.token_ids)):
            with torch.inference_mode():
                logits = model(torch.tensor([sequence])).logits[:, -1]
            sequence += choose_tokens(logits, torch.tensor([0.7]), torch.ones(1), uniforms[:, step]).tolist()
        assert sequence[len(request.prompt_token_ids) :] == completion.token_ids


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_and_order_do_not_change_completions(model_folder: Path, batch_size: int) -> None:
    requests = make_requests()
    expected = generate(model_folder, requests, batch_size=7)
    order = random.Random(0).sample(range(len(requests)), len(requests))
    shuffled = generate(model_folder, [requests[number] for number in order], batch_size=batch_size)
    assert [shuffled[order.index(number)] for number in range(len(requests))] == expected


def test_same_prompt_and_other_seed_give_another_completion(model_folder: Path) -> None:
    completions = generate(model_folder, make_requests())
    assert len({tuple(completion.token_ids) for completion in completions}) == len(completions)


def test_a_completion_stops_at_the_end_of_sequence_token_and_nowhere_else(model_folder: Path) -> None:
    """Any token may be named as the end: completions are those of the free run, cut behind the first such token."""
    requests = make_requests(max_new_tokens=60)
    sampler = open_sampler(make_config(), model_folder)
    free = sampler.generate(requests)
    ends = {free[0].token_ids[3], free[5].token_ids[20], 1}
    sampler._stop_ids = torch.tensor(sorted(ends))  # type: ignore[attr-defined]
    for completion, whole in zip(sampler.generate(requests), free, strict=True):
        first = next((place for place, token in enumerate(whole.token_ids) if token in ends), None)
        assert completion.token_ids == whole.token_ids[: None if first is None else first + 1]
        assert completion.finish_reason == ("length" if first is None else "stop")


def test_budgets_hold_request_by_request(model_folder: Path) -> None:
    whole = generate(model_folder, make_requests())
    requests = [
        dataclasses.replace(request, max_new_tokens=1 + number % 5) for number, request in enumerate(make_requests())
    ]
    for number, completion in enumerate(generate(model_folder, requests)):
        assert completion.token_ids == whole[number].token_ids[: 1 + number % 5]


def test_no_requests_no_completions(model_folder: Path) -> None:
    assert generate(model_folder, []) == []


def test_batches_hold_every_request_once_and_keep_like_prompts_together() -> None:
    requests = make_requests()
    batches = list(batch_numbers(requests, 4))
    numbers = [number for batch in batches for number in batch]
    assert sorted(numbers) == list(range(len(requests)))
    lengths = [len(requests[number].prompt_token_ids) for number in numbers]
    assert lengths == sorted(lengths, reverse=True)


def test_every_end_token_that_the_model_names_stops(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = type("Tokenizer", (), {"eos_token_id": 1})()
    model.generation_config.eos_token_id = [7, 1]
    assert stop_token_ids(model, tokenizer) == [1, 7]
    model.generation_config.eos_token_id = None
    assert stop_token_ids(model, tokenizer) == [1]


def test_a_prompt_that_leaves_too_few_positions_is_an_error(model_folder: Path) -> None:
    requests = make_requests(max_new_tokens=505)
    with pytest.raises(ConfigError) as error:
        generate(model_folder, requests)
    assert str(error.value) == (
        "sampling.max_new_tokens: is 505, but the prompt of problem 3 has 9 tokens and the model 512 positions. "
        "Set it to at most 503."
    )


def test_a_folder_without_weights_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*\)\. Copy the whole folder again\.$"):
        open_sampler(make_config(), tmp_path)
