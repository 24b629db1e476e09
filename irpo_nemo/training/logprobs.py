"""Log-probabilities of given tokens, straight from hidden states: the logits of a chunk of tokens exist at a time.

The vocabulary is split over the tensor-parallel ranks, and padded by Megatron so that it divides evenly; the padded
columns hold no token and stay out of the softmax. Knows nothing of prompts, pairs or losses.

Shapes: n = tokens to predict, h = hidden size, v = padded vocabulary, tp = tensor-parallel size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

_CHUNK_ELEMENTS = 2**24
"""Logits that forward and backward hold at once (64 MiB in fp32); fewer would slow the products with the weight. Those
of the last chunk are kept for backward, so that a small vocabulary costs no product twice."""


def linear_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, tp_group: ProcessGroup
) -> Tensor:
    """Compute log softmax(hidden weight^T)[target] in fp32 without ever holding all logits.

    Keeps hidden, weight, the last chunk of logits and one number a token for backward, which computes the other logits
    again. All-reduces twice over
    the tensor-parallel group in forward (maximum; sums), never in backward: the gradient of `hidden` is this rank's
    part of a sum over the group, which the caller reduces. A target outside [0, vocab_size) has a meaningless but
    finite value.

    Args:
        hidden: What predicts each token, the same on all ranks of the group, [n, h], any float dtype.
        weight: This rank's rows of the output layer, [v/tp, h].
        targets: [n], int64.
        vocab_size: Tokens that exist; rows of the output layer from here on are padding.
        tp_group: The tensor-parallel group.

    Returns:
        [n], fp32, the same on all ranks of the group.
    """
    return _LinearLogprobs.apply(hidden, weight, targets, vocab_size, tp_group)


def sum_by_completion(token_logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Sum the log-probs of each completion's tokens, always in the same order.

    Args:
        token_logprobs: Of all tokens of all completions, one completion after the other, [n].
        lengths: Tokens of each completion, [completions], int64, none of them 0.

    Returns:
        [completions], fp32.
    """
    return torch.segment_reduce(token_logprobs.float(), "sum", lengths=lengths)


class _LinearLogprobs(torch.autograd.Function):
    """d logprob / d logits = onehot(target) - softmax: each rank knows its columns' once it has the partition sum."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, tp_group: ProcessGroup
    ) -> Tensor:
        first_token = tp_group.rank() * weight.shape[0]
        num_tokens = min(max(vocab_size - first_token, 0), weight.shape[0])
        columns = targets - first_token
        is_ours = (columns >= 0) & (columns < num_tokens)
        columns = columns.masked_fill(~is_ours, 0)

        maximum = torch.full(targets.shape, float("-inf"), device=hidden.device)
        exp_sums, target_logits = torch.zeros_like(maximum), torch.zeros_like(maximum)
        logits = None
        for chunk in _chunks(hidden, num_tokens):
            logits = _logits(hidden[chunk], weight, num_tokens)
            maximum[chunk] = logits.amax(dim=-1)
            target_logits[chunk] = logits.gather(1, columns[chunk, None]).squeeze(1)
            exp_sums[chunk] = logits.sub_(maximum[chunk, None]).exp_().sum(dim=-1)
        ours = maximum.clone()
        all_reduce(maximum, op=ReduceOp.MAX, group=tp_group)
        sums = torch.stack([exp_sums * (ours - maximum).exp(), target_logits.masked_fill(~is_ours, 0.0)])
        all_reduce(sums, group=tp_group)
        exp_sums, target_logits = sums.unbind()

        log_partition = maximum + exp_sums.log()
        ctx.save_for_backward(hidden, weight, log_partition, columns, is_ours, ours, logits)
        ctx.num_tokens = num_tokens
        return target_logits - log_partition

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, log_partition, columns, is_ours, ours, kept = ctx.saved_tensors
        grads = grad_outputs[0].float()
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        used = weight[: ctx.num_tokens]
        for chunk in _chunks(hidden, ctx.num_tokens):
            grad = grads[chunk, None]
            # Added up in fp32: in bf16, onehot - softmax would be 0 for every token the model is sure of.
            if chunk.stop >= hidden.shape[0]:  # `kept` is exp(logits - ours); torch refuses a second backward over it
                grad_logits = kept.mul_(-grad * (ours[chunk] - log_partition[chunk]).exp()[:, None])
            else:
                logits = _logits(hidden[chunk], weight, ctx.num_tokens)
                grad_logits = logits.sub_(log_partition[chunk, None]).exp_().mul_(-grad)
            grad_logits.scatter_add_(1, columns[chunk, None], grad * is_ours[chunk, None])
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[chunk] = grad_logits @ used
            _add_product(grad_weight[: ctx.num_tokens], grad_logits.t(), hidden[chunk])
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _chunks(hidden: Tensor, num_tokens: int) -> Iterator[slice]:
    """Slices of `hidden` whose logits are `_CHUNK_ELEMENTS` at most, or one row; none where a rank has no tokens."""
    if num_tokens == 0:
        return
    step = max(1, _CHUNK_ELEMENTS // num_tokens)
    for start in range(0, hidden.shape[0], step):
        yield slice(start, start + step)


def _logits(hidden: Tensor, weight: Tensor, num_tokens: int) -> Tensor:
    """[rows, num_tokens] fp32."""
    return (hidden @ weight[:num_tokens].t()).float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, fp32, which keeps what bf16 would round away."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
