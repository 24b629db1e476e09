"""Log-probs and their gradients are the same however the vocabulary is split."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from irpo_nemo.training.logprobs import linear_logprobs
from tests.distributed.ranks import run_on_ranks

SPLITS = {"even": (16, 16), "padding on the last rank": (13, 16), "a rank of padding only": (8, 16)}


def logprobs_of_split(vocab_size: int, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [10], the gradient of the hidden states, summed over ranks, and this rank's rows of the weight's."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 6, generator=generator)
    hidden[:, 0] = 1.0
    weight = torch.randn(padded, 6, generator=generator) * 2
    weight[vocab_size:, 0] = 100.0
    targets = torch.randint(vocab_size, (10,), generator=generator)
    ours = weight.chunk(dist.get_world_size())[dist.get_rank()].clone().requires_grad_()
    hidden.requires_grad_()
    values = linear_logprobs(hidden, ours, targets, vocab_size=vocab_size, tp_group=dist.group.WORLD)
    (values * torch.linspace(-1, 2, 10)).sum().backward()
    assert ours.grad is not None and hidden.grad is not None
    dist.all_reduce(hidden.grad)
    return values.detach(), hidden.grad, ours.grad


def logprobs_of_splits() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    return {name: logprobs_of_split(*sizes) for name, sizes in SPLITS.items()}


@pytest.fixture(scope="module")
def whole() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    return run_on_ranks(logprobs_of_splits, 1)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("tp_size", [2, 4])
def test_logprobs_and_gradients_do_not_depend_on_the_split(
    whole: dict[str, tuple[Tensor, Tensor, Tensor]], tp_size: int
) -> None:
    by_rank = run_on_ranks(logprobs_of_splits, tp_size)
    for name, (values, grad_hidden, grad_weight) in whole.items():
        for result in by_rank:
            torch.testing.assert_close(result[name][0], values, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(result[name][1], grad_hidden, atol=2e-6, rtol=2e-6)
        joined = torch.cat([result[name][2] for result in by_rank])
        torch.testing.assert_close(joined, grad_weight, atol=2e-6, rtol=2e-6)
