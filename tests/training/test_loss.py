"""The loss against values worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from irpo_nemo.training.loss import PairLosses, nll_per_sequence, pair_losses


def losses_of(chosen: Tensor, rejected: Tensor, **changes: Any) -> PairLosses:
    """One pair a row; both references are -5, and chosen has 8 tokens."""
    reference = torch.full_like(chosen, -5.0)
    options = {"beta": 0.1, "dpo_weight": 1.0, "nll_weight": 1.0} | changes
    return pair_losses(chosen, rejected, reference, reference, torch.full_like(chosen, 8, dtype=torch.int64), **options)


def test_dpo_loss_is_ln_2_when_policy_equals_reference() -> None:
    reference = torch.tensor([-3.0, -70.0])
    losses = losses_of(reference, reference)
    assert losses.dpo.tolist() == pytest.approx([math.log(2)] * 2)


def test_losses_of_a_pair_worked_out_by_hand() -> None:
    losses = losses_of(torch.tensor([-4.0]), torch.tensor([-6.0]))
    assert losses.reward_chosen.item() == pytest.approx(0.1 * (-4 - -5))
    assert losses.reward_rejected.item() == pytest.approx(0.1 * (-6 - -5))
    assert losses.dpo.item() == pytest.approx(math.log(1 + math.exp(-0.2)))
    assert losses.nll.item() == pytest.approx(4 / 8)
    assert losses.total.item() == pytest.approx(math.log(1 + math.exp(-0.2)) + 4 / 8)


def test_weights_scale_their_terms() -> None:
    losses = losses_of(torch.tensor([-4.0]), torch.tensor([-6.0]), dpo_weight=0.5, nll_weight=3.0)
    assert losses.total.item() == pytest.approx(0.5 * math.log(1 + math.exp(-0.2)) + 3.0 * 4 / 8)


def test_gradients_follow_the_closed_form() -> None:
    chosen = torch.tensor([-4.0], requires_grad=True)
    rejected = torch.tensor([-6.0], requires_grad=True)
    losses_of(chosen, rejected).total.sum().backward()
    dpo_slope = 0.1 / (1 + math.exp(0.2))  # beta * sigmoid(-margin)
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-dpo_slope - 1 / 8)
    assert rejected.grad.item() == pytest.approx(dpo_slope)


def test_without_dpo_the_rejected_completion_has_no_gradient() -> None:
    chosen = torch.tensor([-4.0], requires_grad=True)
    rejected = torch.tensor([-6.0], requires_grad=True)
    losses_of(chosen, rejected, dpo_weight=0.0).total.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-1 / 8)
    assert rejected.grad.item() == 0.0


def test_extreme_margins_stay_finite_and_linear() -> None:
    losses = losses_of(torch.tensor([-5.0, -5.0]), torch.tensor([-50005.0, 49995.0]), nll_weight=0.0)
    assert losses.total.tolist() == pytest.approx([0.0, 5000.0])


def test_pairs_do_not_mix() -> None:
    chosen, rejected = torch.tensor([-4.0, -9.0]), torch.tensor([-6.0, -1.0])
    together = losses_of(chosen, rejected).total
    apart = [losses_of(chosen[i : i + 1], rejected[i : i + 1]).total.item() for i in range(2)]
    assert together.tolist() == pytest.approx(apart)


def test_rewards_carry_no_gradient() -> None:
    losses = losses_of(torch.tensor([-4.0], requires_grad=True), torch.tensor([-6.0], requires_grad=True))
    assert not losses.reward_chosen.requires_grad
    assert not losses.reward_rejected.requires_grad


def test_nll_of_sft_is_the_mean_over_tokens() -> None:
    assert nll_per_sequence(torch.tensor([-6.0, -6.0]), torch.tensor([3, 12])).tolist() == [2.0, 0.5]


def test_losses_are_fp32_for_bf16_sums() -> None:
    losses = losses_of(torch.tensor([-4.0], dtype=torch.bfloat16), torch.tensor([-6.0], dtype=torch.bfloat16))
    assert losses.total.dtype == torch.float32
