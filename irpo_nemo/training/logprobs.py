"""Log-probabilities of given tokens from logits whose vocabulary is split over the tensor-parallel ranks.

Megatron pads the vocabulary so that it divides evenly; the padded columns hold no token and stay out of the softmax.
Knows nothing of prompts, pairs or losses.

Shapes: b = sequences of the micro batch, s = positions, v = padded vocabulary, tp = tensor-parallel size, rows = b * s.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

_CHUNK_ELEMENTS = 2**24
"""fp32 elements of the temporaries that forward and backward hold at once (64 MiB)."""


def vocab_parallel_logprobs(logits: Tensor, targets: Tensor, *, vocab_size: int, tp_group: ProcessGroup) -> Tensor:
    """Compute log softmax(logits)[target] in fp32; no rank ever holds the whole vocabulary, or a softmax of its part.

    All-reduces twice over the tensor-parallel group in forward (maximum; sums), never in backward. Keeps the logits,
    and three numbers a position, for backward. A target outside [0, vocab_size) has a meaningless but finite value:
    mask it.

    Args:
        logits: This rank's columns of the padded vocabulary, [b, s, v/tp], any float dtype.
        targets: The token that each position predicts, so already shifted, [b, s], int64.
        vocab_size: Tokens that exist; columns from here on are padding.
        tp_group: The tensor-parallel group.

    Returns:
        [b, s], fp32, the same on all ranks of the group.
    """
    return _VocabParallelLogprobs.apply(logits, targets, vocab_size, tp_group)


def sum_completion_logprobs(token_logprobs: Tensor, completion_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum each sequence's log-probs over its completion tokens.

    Args:
        token_logprobs: [b, s].
        completion_mask: True where the predicted token belongs to the completion, [b, s]; bool, or 0 and 1.

    Returns:
        sums: [b], fp32.
        counts: Completion tokens, [b], int64.
    """
    completion = completion_mask.bool()
    sums = token_logprobs.float().masked_fill(~completion, 0.0).sum(dim=-1)
    return sums, completion.sum(dim=-1)


class _VocabParallelLogprobs(torch.autograd.Function):
    """d logprob / d logits = onehot(target) - softmax: each rank knows its columns' once it has the partition sum."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, vocab_size: int, tp_group: ProcessGroup) -> Tensor:
        rows = logits.flatten(0, 1)
        first_token = tp_group.rank() * rows.shape[1]
        num_tokens = min(max(vocab_size - first_token, 0), rows.shape[1])
        columns = targets.flatten() - first_token
        is_ours = (columns >= 0) & (columns < num_tokens)
        columns = columns.masked_fill(~is_ours, 0)

        maximum = _row_maximum(rows, num_tokens)
        all_reduce(maximum, op=ReduceOp.MAX, group=tp_group)
        exp_sums, target_logits = _row_sums(rows, num_tokens, maximum, columns, is_ours)
        sums = torch.stack([exp_sums, target_logits])
        all_reduce(sums, group=tp_group)
        exp_sums, target_logits = sums.unbind()

        log_partition = maximum + exp_sums.log()
        ctx.save_for_backward(logits, log_partition, columns, is_ours)
        ctx.num_tokens = num_tokens
        return (target_logits - log_partition).view(targets.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        logits, log_partition, columns, is_ours = ctx.saved_tensors
        rows = logits.flatten(0, 1)
        grad_rows = grad_outputs[0].flatten().float()
        grad_logits = torch.zeros_like(rows)
        for chunk in _row_chunks(rows) if ctx.num_tokens else []:
            grad = grad_rows[chunk, None]
            # Added up in fp32: in bf16, onehot - softmax would be 0 for every token the model is sure of.
            grad_chunk = (rows[chunk, : ctx.num_tokens].float() - log_partition[chunk, None]).exp_().mul_(-grad)
            grad_chunk.scatter_add_(1, columns[chunk, None], grad * is_ours[chunk, None])
            grad_logits[chunk, : ctx.num_tokens] = grad_chunk
        return grad_logits.view(logits.shape), None, None, None


def _row_chunks(rows: Tensor) -> list[slice]:
    step = max(1, _CHUNK_ELEMENTS // rows.shape[1])
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]


def _row_maximum(rows: Tensor, num_tokens: int) -> Tensor:
    if num_tokens == 0:
        return torch.full(rows.shape[:1], float("-inf"), device=rows.device)
    return rows[:, :num_tokens].amax(dim=-1).float()


def _row_sums(
    rows: Tensor, num_tokens: int, maximum: Tensor, columns: Tensor, is_ours: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum exp(logit - maximum) over our tokens, and pick the target's logit if ours, else 0; both [rows], fp32."""
    exp_sums = torch.zeros_like(maximum)
    for chunk in _row_chunks(rows):
        exp_sums[chunk] = (rows[chunk, :num_tokens].float() - maximum[chunk, None]).exp_().sum(dim=-1)
    target_logits = rows.gather(1, columns[:, None]).squeeze(1).float()
    return exp_sums, target_logits.masked_fill(~is_ours, 0.0)
