"""What tests read off a Megatron model in any layout: whole logits, and gradients under Hugging Face's names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def run_schedule(
    chunks: Sequence[Any],
    tokens: Tensor,
    finish: Callable[[Tensor], Any],
    *,
    forward_only: bool,
    positions: Tensor | None = None,
    layout: Any = None,
) -> list[Any]:
    """Run `tokens`, [batch, seq], through the pipeline; `finish` gets the last stage's answer.

    That is logits, [batch, seq, vocab/tp], or, with a layout, the log-probs of its tokens. An interleaved schedule runs
    them several times, since it takes no fewer micro batches than there are stages.
    """
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    is_interleaved = len(chunks) > 1

    if positions is None:
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)

    def forward_step(_: Any, model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
        return model(tokens, positions, None, layout=layout), finish

    return get_forward_backward_func()(  # type: ignore[no-any-return]
        forward_step_func=forward_step,
        data_iterator=[None] * len(chunks) if is_interleaved else None,
        model=list(chunks),
        num_microbatches=parallel_state.get_pipeline_model_parallel_world_size() if is_interleaved else 1,
        seq_length=tokens.shape[1],
        micro_batch_size=tokens.shape[0],
        forward_only=forward_only,
    )


@torch.no_grad()
def gathered_logits(chunks: Sequence[Any], tokens: Tensor, *, vocab_size: int) -> Tensor | None:
    """[batch, seq, vocab_size] on the last pipeline stage, None on others. All-gathers over the tensor ranks."""
    from megatron.core import parallel_state

    outputs = run_schedule(chunks, tokens, lambda logits: (logits.sum(), {"logits": logits}), forward_only=True)
    if not outputs:
        return None
    group = parallel_state.get_tensor_model_parallel_group()
    logits = outputs[0]["logits"].contiguous()
    shards = [torch.empty_like(logits) for _ in range(group.size())]
    dist.all_gather(shards, logits, group=group)
    return torch.cat(shards, dim=-1)[..., :vocab_size]


def export_gradients(policy: Any, folder: Path) -> None:
    """Write the gradients as a Hugging Face folder. The export of weights, which other tests prove, maps the names."""
    parameters = list(policy.chunks.parameters())
    weights = [parameter.data.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.data.copy_(parameter.main_grad)
    policy.export(folder)
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.data.copy_(weight)
