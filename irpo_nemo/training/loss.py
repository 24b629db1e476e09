"""The IRPO loss: DPO plus length-normalised NLL of chosen (Pang et al. 2024, arXiv 2404.19733v3, equation 1).

    dpo  = -log sigmoid( beta * [ (log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected)) ] )
    nll  = -log p(chosen) / number of completion tokens of chosen
    loss = dpo_weight * dpo + nll_weight * nll

The log-probs are sums over completion tokens, end-of-sequence included. Values are per pair; the caller averages them
over all pairs of the global batch. Knows nothing of models, batches or ranks.

Shapes: pairs = pairs of this micro batch; sequences = any number of completions.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PairLosses:
    """The loss and its parts for each pair; every field is [pairs], fp32."""

    total: Tensor
    """dpo_weight * dpo + nll_weight * nll."""
    dpo: Tensor
    """ln 2 where the policy equals the reference."""
    nll: Tensor
    """Nats per completion token of chosen."""
    reward_chosen: Tensor
    """beta * (policy - reference) of chosen; detached, for metrics."""
    reward_rejected: Tensor
    """beta * (policy - reference) of rejected; detached, for metrics."""


def pair_losses(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_tokens: Tensor,
    *,
    beta: float,
    dpo_weight: float,
    nll_weight: float,
) -> PairLosses:
    """Compute equation 1 for each pair.

    dpo_weight 1 and nll_weight 1 are the paper's IRPO, nll_weight 0 is plain DPO, dpo_weight 0 is SFT on chosen.

    Args:
        policy_chosen: Summed log-probs of the chosen completions, [pairs]. Gradients flow through this and the next.
        policy_rejected: Summed log-probs of the rejected completions, [pairs].
        reference_chosen: The same under the reference, [pairs].
        reference_rejected: The same under the reference, [pairs].
        chosen_tokens: Completion tokens of chosen, at least 1, [pairs].
        beta: Scale of the implicit reward.
        dpo_weight: Weight of dpo.
        nll_weight: Weight of nll; the paper's alpha.
    """
    reward_chosen = beta * (policy_chosen.float() - reference_chosen.float())
    reward_rejected = beta * (policy_rejected.float() - reference_rejected.float())
    dpo = -F.logsigmoid(reward_chosen - reward_rejected)
    nll = nll_per_sequence(policy_chosen, chosen_tokens)
    return PairLosses(
        total=dpo_weight * dpo + nll_weight * nll,
        dpo=dpo,
        nll=nll,
        reward_chosen=reward_chosen.detach(),
        reward_rejected=reward_rejected.detach(),
    )


def nll_per_sequence(logprob_sums: Tensor, num_tokens: Tensor) -> Tensor:
    """Average the negative log-likelihood over each completion's tokens: the NLL term above.

    Args:
        logprob_sums: Summed log-probs of the completions, [sequences].
        num_tokens: Completion tokens, at least 1, [sequences].

    Returns:
        Nats per token, [sequences], fp32.
    """
    return -logprob_sums.float() / num_tokens
