"""Log-probs on one rank against torch's log_softmax. tests/distributed has the same over several ranks."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from irpo_nemo.training import logprobs
from irpo_nemo.training.logprobs import linear_logprobs, sum_by_completion

VOCAB_SIZE, PADDED, HIDDEN, TOKENS = 13, 16, 6, 10


@pytest.fixture(scope="module")
def tp_group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def random_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weights whose padding would win every softmax, and targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    hidden[:, 0] = 1.0
    weight = torch.randn(PADDED, HIDDEN, generator=generator) * 2
    weight[VOCAB_SIZE:, 0] = 100.0
    targets = torch.randint(VOCAB_SIZE, (TOKENS,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), targets


def expected_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight[:VOCAB_SIZE].t()).float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def value_and_gradients(
    function: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = function(hidden, weight)
    (value * scale).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return value.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("chunk_elements", [2**24, 30, 1])
def test_logprobs_and_gradients_equal_log_softmax(
    tp_group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch, chunk_elements: int
) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", chunk_elements)
    hidden, weight, targets = random_inputs()
    scale = torch.linspace(-1, 2, TOKENS)
    ours = value_and_gradients(
        lambda h, w: linear_logprobs(h, w, targets, vocab_size=VOCAB_SIZE, tp_group=tp_group), hidden, weight, scale
    )
    theirs = value_and_gradients(lambda h, w: expected_logprobs(h, w, targets), hidden, weight, scale)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)


def test_padded_vocabulary_gets_no_gradient(tp_group: dist.ProcessGroup) -> None:
    hidden, weight, targets = random_inputs()
    _, _, gradient = value_and_gradients(
        lambda h, w: linear_logprobs(h, w, targets, vocab_size=VOCAB_SIZE, tp_group=tp_group),
        hidden,
        weight,
        torch.ones(TOKENS),
    )
    assert gradient[VOCAB_SIZE:].count_nonzero() == 0
    assert gradient[:VOCAB_SIZE].count_nonzero() == gradient[:VOCAB_SIZE].numel()


def test_gradient_of_a_sure_token_survives_bf16(tp_group: dist.ProcessGroup) -> None:
    """The hidden state is the logit of token 0, so its gradient is 1 - softmax, which bf16's 1 - p would lose."""
    hidden = torch.tensor([[10.0]], dtype=torch.bfloat16)
    weight = torch.zeros(PADDED, 1, dtype=torch.bfloat16)
    weight[0] = 1.0
    _, gradient, _ = value_and_gradients(
        lambda h, w: linear_logprobs(h, w, torch.zeros(1, dtype=torch.int64), vocab_size=VOCAB_SIZE, tp_group=tp_group),
        hidden,
        weight,
        torch.ones(1),
    )
    others = 12 * torch.exp(torch.tensor(-10.0))
    torch.testing.assert_close(gradient[0, 0].float(), others / (1 + others), rtol=1e-2, atol=0.0)


def test_gradient_of_a_weight_is_added_up_in_fp32(tp_group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 equal tokens, one a chunk: added up in bf16 they would stop counting at 256."""
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", 1)
    count = 2000
    _, _, gradient = value_and_gradients(
        lambda h, w: linear_logprobs(h, w, torch.zeros(count, dtype=torch.int64), vocab_size=2, tp_group=tp_group),
        torch.ones(count, 1, dtype=torch.bfloat16),
        torch.zeros(2, 1, dtype=torch.bfloat16),
        torch.ones(count),
    )
    assert gradient.flatten().tolist() == [count / 2, -count / 2]


def test_logprobs_are_fp32_whatever_the_inputs_are(tp_group: dist.ProcessGroup) -> None:
    hidden, weight, targets = random_inputs(torch.bfloat16)
    ours = linear_logprobs(hidden, weight, targets, vocab_size=VOCAB_SIZE, tp_group=tp_group)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected_logprobs(hidden, weight, targets), atol=1e-6, rtol=1e-6)


def test_a_target_that_is_no_token_is_finite(tp_group: dist.ProcessGroup) -> None:
    hidden, weight, targets = random_inputs()
    targets[0], targets[1] = -100, PADDED + 3
    assert linear_logprobs(hidden, weight, targets, vocab_size=VOCAB_SIZE, tp_group=tp_group).isfinite().all()


def test_sums_are_by_completion() -> None:
    sums = sum_by_completion(torch.tensor([-1.0, -2.0, -4.0, -8.0]), torch.tensor([1, 3]))
    assert sums.tolist() == [-1.0, -14.0]
