"""Log-probs of the reference, once per unique completion, by the trainer itself before its first step.

At that moment the policy is the reference, so no second model is ever in memory. The result is a file keyed by
candidate id and model hash; a later start that finds it whole uses it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from irpo_nemo.artifacts import read_records, write_records
from irpo_nemo.errors import ModelError
from irpo_nemo.records import PreferencePair, ReferenceLogprob
from irpo_nemo.supervision import beat
from irpo_nemo.training.batches import (
    Completion,
    Example,
    batch_options,
    make_micro_batches,
    make_units,
    plan_micro_batches,
)
from irpo_nemo.training.model import IRPOModel
from irpo_nemo.training.parallel import (
    data_parallel_rank,
    data_parallel_size,
    is_rank_zero,
    reports_losses,
    training_device,
)

logger = logging.getLogger(__name__)

SCHEDULE_MICRO_BATCHES = 8
"""Micro batches that go through the pipeline in one run of the schedule, for each stage that it goes around."""


def reference_logprobs(
    policy: IRPOModel, pairs: Sequence[PreferencePair], path: Path, *, model_hash: str
) -> list[ReferenceLogprob]:
    """Read `path` when it covers every completion of `pairs` under this model; else score them and write it.

    Every rank calls this before the first optimizer step, and gets all log-probs.
    """
    completions = unique_completions(pairs)
    if path.exists():
        stored = read_records(path, ReferenceLogprob)
        if _covers(stored, completions, model_hash):
            return stored
        if is_rank_zero():
            logger.info("%s is of other weights or other pairs; scoring again", path)
        dist.barrier()  # every rank has read it before rank 0 replaces it
    logprobs = score_completions(policy, list(completions.values()))
    references = [
        ReferenceLogprob(
            candidate_id=candidate_id,
            model_hash=model_hash,
            logprob=logprob,
            num_tokens=len(completion.completion),
        )
        for (candidate_id, completion), logprob in zip(completions.items(), logprobs, strict=True)
    ]
    if is_rank_zero():
        write_records(path, references, ReferenceLogprob)
        logger.info("reference log-probs of %d completions in %s", len(references), path)
    dist.barrier()
    return references


def unique_completions(pairs: Sequence[PreferencePair]) -> dict[str, Completion]:
    """Every completion that a pair names, once, by candidate id."""
    completions: dict[str, Completion] = {}
    for pair in pairs:
        for candidate_id, token_ids in (
            (pair.chosen_id, pair.chosen_token_ids),
            (pair.rejected_id, pair.rejected_token_ids),
        ):
            completions[candidate_id] = Completion(prompt=tuple(pair.prompt_token_ids), completion=tuple(token_ids))
    return completions


def _covers(stored: Sequence[ReferenceLogprob], completions: dict[str, Completion], model_hash: str) -> bool:
    known = {record.candidate_id: record for record in stored}
    return known.keys() == completions.keys() and all(record.model_hash == model_hash for record in stored)


def score_completions(policy: IRPOModel, completions: Sequence[Completion]) -> list[float]:
    """Summed log-prob of each completion, in order, on every rank. All-reduces once over all ranks.

    Completions of one prompt share it; their order and grouping follow from the tokens alone.

    Raises:
        ModelError: A log-prob is not finite.
    """
    options = batch_options(policy.options.training, policy.options.parallel)
    different = {(item.prompt, item.completion): item for item in completions}
    index_of = {tokens: index for index, tokens in enumerate(different)}
    units = make_units([Example(chosen=item, rejected=None) for item in different.values()], options)
    mine = plan_micro_batches(units, ranks=data_parallel_size(), options=options)[data_parallel_rank()]
    logprobs = torch.zeros(len(different), dtype=torch.float64, device=training_device())
    at_once = SCHEDULE_MICRO_BATCHES * options.interleaved_stages
    for start in range(0, len(mine), at_once):
        parts = mine[start : start + at_once]
        beat()
        scores = policy.completion_logprobs(make_micro_batches(parts, options))
        for part, sums in zip(parts, scores or [], strict=False):
            indices = [
                index_of[group.prompt, completion]
                for unit in part
                for group in unit.groups
                for completion in group.completions
            ]
            weights = [unit.weight for unit in part for group in unit.groups for _ in group.completions]
            logprobs[indices] += sums.double() * torch.tensor(weights, device=sums.device)
    if not reports_losses():
        logprobs.zero_()
    dist.all_reduce(logprobs)
    if not bool(torch.isfinite(logprobs).all()):
        raise ModelError("reference log-probs: not all are finite; the model's weights hold NaN or infinity")
    values = logprobs.tolist()
    return [values[index_of[item.prompt, item.completion]] for item in completions]
