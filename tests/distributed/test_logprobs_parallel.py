"""Log-probs and their gradients are the same however the vocabulary is split."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from irpo_nemo.training.logprobs import vocab_parallel_logprobs
from tests.distributed.ranks import run_on_ranks

SPLITS = {"even": (16, 16), "padding on the last rank": (13, 16), "a rank of padding only": (8, 16)}


def logprobs_of_split(vocab_size: int, padded: int) -> tuple[Tensor, Tensor]:
    """Log-probs [2, 5] and this rank's columns of the gradient, [2, 5, padded / ranks]."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, padded, generator=generator) * 4
    logits[..., vocab_size:] = 100.0
    targets = torch.randint(vocab_size, (2, 5), generator=generator)
    ours = logits.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()].clone().requires_grad_()
    values = vocab_parallel_logprobs(ours, targets, vocab_size=vocab_size, tp_group=dist.group.WORLD)
    (values * torch.linspace(-1, 2, 10).view(2, 5)).sum().backward()
    assert ours.grad is not None
    return values.detach(), ours.grad


def logprobs_of_splits() -> dict[str, tuple[Tensor, Tensor]]:
    return {name: logprobs_of_split(*sizes) for name, sizes in SPLITS.items()}


@pytest.fixture(scope="module")
def whole() -> dict[str, tuple[Tensor, Tensor]]:
    return run_on_ranks(logprobs_of_splits, 1)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("tp_size", [2, 4])
def test_logprobs_and_gradients_do_not_depend_on_the_split(
    whole: dict[str, tuple[Tensor, Tensor]], tp_size: int
) -> None:
    by_rank = run_on_ranks(logprobs_of_splits, tp_size)
    for name, (values, gradient) in whole.items():
        for result in by_rank:
            torch.testing.assert_close(result[name][0], values, atol=1e-6, rtol=1e-6)
        joined = torch.cat([result[name][1] for result in by_rank], dim=-1)
        torch.testing.assert_close(joined, gradient, atol=1e-6, rtol=1e-6)
