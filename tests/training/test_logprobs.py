"""Log-probs on one rank against torch's log_softmax. tests/distributed has the same over several ranks."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from irpo_nemo.training import logprobs
from irpo_nemo.training.logprobs import sum_completion_logprobs, vocab_parallel_logprobs

VOCAB_SIZE, PADDED = 13, 16


@pytest.fixture(scope="module")
def tp_group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def random_logits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits [2, 5, PADDED] whose padding would win every softmax, and targets [2, 5]."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, PADDED, generator=generator) * 4
    logits[..., VOCAB_SIZE:] = 100.0
    targets = torch.randint(VOCAB_SIZE, (2, 5), generator=generator)
    return logits.to(dtype), targets


def expected_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    return logits[..., :VOCAB_SIZE].float().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)


def value_and_gradient(function: object, logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = function(logits)  # type: ignore[operator]
    (value * weights).sum().backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


@pytest.mark.parametrize("chunk_elements", [2**24, 20])
def test_logprobs_and_gradients_equal_log_softmax(
    tp_group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch, chunk_elements: int
) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", chunk_elements)
    logits, targets = random_logits()
    weights = torch.linspace(-1, 2, 10).view(2, 5)
    ours = value_and_gradient(
        lambda x: vocab_parallel_logprobs(x, targets, vocab_size=VOCAB_SIZE, tp_group=tp_group), logits, weights
    )
    theirs = value_and_gradient(lambda x: expected_logprobs(x, targets), logits, weights)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_padded_vocabulary_gets_no_gradient(tp_group: dist.ProcessGroup) -> None:
    logits, targets = random_logits()
    _, gradient = value_and_gradient(
        lambda x: vocab_parallel_logprobs(x, targets, vocab_size=VOCAB_SIZE, tp_group=tp_group),
        logits,
        torch.ones(2, 5),
    )
    assert gradient[..., VOCAB_SIZE:].count_nonzero() == 0


def test_gradient_of_a_sure_token_survives_bf16(tp_group: dist.ProcessGroup) -> None:
    logits = torch.zeros(1, 1, PADDED, dtype=torch.bfloat16)
    logits[0, 0, 0] = 10.0
    _, gradient = value_and_gradient(
        lambda x: vocab_parallel_logprobs(x, torch.zeros(1, 1, dtype=torch.int64), vocab_size=13, tp_group=tp_group),
        logits,
        torch.ones(1, 1),
    )
    others = 12 * torch.exp(torch.tensor(-10.0))
    torch.testing.assert_close(gradient[0, 0, 0].float(), others / (1 + others), rtol=1e-2, atol=0.0)


def test_logprobs_are_fp32_whatever_the_logits_are(tp_group: dist.ProcessGroup) -> None:
    logits, targets = random_logits(torch.bfloat16)
    ours = vocab_parallel_logprobs(logits, targets, vocab_size=VOCAB_SIZE, tp_group=tp_group)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected_logprobs(logits, targets), atol=1e-6, rtol=1e-6)


def test_a_target_that_is_no_token_is_finite(tp_group: dist.ProcessGroup) -> None:
    logits, targets = random_logits()
    targets[0, 0], targets[0, 1] = -100, PADDED + 3
    assert vocab_parallel_logprobs(logits, targets, vocab_size=VOCAB_SIZE, tp_group=tp_group).isfinite().all()


def test_sums_and_counts_cover_the_completion_only() -> None:
    token_logprobs = torch.tensor([[-1.0, -2.0, -4.0, -8.0], [-1.0, -2.0, -4.0, float("-inf")]])
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])
    sums, counts = sum_completion_logprobs(token_logprobs, mask)
    assert sums.tolist() == [-6.0, -1.0]
    assert counts.tolist() == [2, 1]
