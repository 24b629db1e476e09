"""Log-probs of the reference, once per unique completion, by the trainer itself before its first step.

At that moment the policy is the reference, so no second model is ever in memory. The result is a file keyed by
candidate id and model hash; a later start that finds it whole uses it, and one that finds parts of it scores the rest.
"""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from irpo_nemo.artifacts import list_parts, part_path, parts_of, read_parts, read_records, write_records
from irpo_nemo.config import ParallelConfig, TrainingConfig
from irpo_nemo.errors import ModelError
from irpo_nemo.records import PreferencePair, ReferenceLogprob
from irpo_nemo.supervision import beat
from irpo_nemo.training.batches import (
    BatchOptions,
    Completion,
    Example,
    batch_options,
    make_micro_batches,
    make_units,
    plan_micro_batches,
)
from irpo_nemo.training.model import IRPOModel, IRPOModelConfig
from irpo_nemo.training.parallel import (
    data_parallel_rank,
    data_parallel_size,
    is_rank_zero,
    reports_losses,
    training_device,
)

logger = logging.getLogger(__name__)

PART_MICRO_BATCHES = 32
"""Micro batches of a part, which go through the pipeline in one run of the schedule. A kill costs one part."""

MAX_TOKENS = 16384
"""Tokens of a micro batch, where training's own limit is no higher."""

T = TypeVar("T")


def reference_logprobs(
    policy: IRPOModel, pairs: Sequence[PreferencePair], path: Path, *, model_hash: str
) -> list[ReferenceLogprob]:
    """Read `path` when it covers every completion of `pairs` under this model; else score what is missing, write it.

    Every rank calls this before the first optimizer step, and gets all log-probs.
    """
    completions = unique_completions(pairs)
    known, is_whole = _from_rank_zero(lambda: _read_known(path, completions, model_hash))
    if is_whole:
        return known
    scored = {record.candidate_id: record for record in known}
    for candidate_ids in _cut_into_parts(completions, _tokens_per_part(policy.options)):
        if scored.keys() >= set(candidate_ids):
            continue
        records = _score_part(policy, completions, candidate_ids, model_hash)
        scored |= {record.candidate_id: record for record in records}
        if is_rank_zero():
            folder = parts_of(path)
            write_records(part_path(folder, len(list_parts(folder))), records, ReferenceLogprob)
    references = [scored[candidate_id] for candidate_id in completions]
    if is_rank_zero():
        write_records(path, references, ReferenceLogprob)
        shutil.rmtree(parts_of(path))
        logger.info("reference log-probs of %d completions in %s", len(references), path)
    dist.barrier()
    return references


def _read_known(
    path: Path, completions: Mapping[str, Completion], model_hash: str
) -> tuple[list[ReferenceLogprob], bool]:
    """What is written already of this model's log-probs, and whether that is all."""
    if path.exists():
        stored = read_records(path, ReferenceLogprob)
        if _covers(stored, completions, model_hash):
            return stored, True
        logger.info("%s is of other weights or other pairs; scoring again", path)
    written = read_parts(parts_of(path), ReferenceLogprob)
    return [item for item in written if item.model_hash == model_hash and item.candidate_id in completions], False


def _from_rank_zero(read: Callable[[], T]) -> T:
    """What rank 0 reads, on every rank: others might see the file system as it was a moment ago."""
    answer: list[Any] = [read() if is_rank_zero() else None]
    dist.broadcast_object_list(answer)
    return cast(T, answer[0])


def _score_part(
    policy: IRPOModel, completions: Mapping[str, Completion], candidate_ids: Sequence[str], model_hash: str
) -> list[ReferenceLogprob]:
    part = [completions[candidate_id] for candidate_id in candidate_ids]
    return [
        ReferenceLogprob(
            candidate_id=candidate_id, model_hash=model_hash, logprob=logprob, num_tokens=len(item.completion)
        )
        for candidate_id, item, logprob in zip(candidate_ids, part, score_completions(policy, part), strict=True)
    ]


def _cut_into_parts(completions: Mapping[str, Completion], tokens_per_part: int) -> Iterator[list[str]]:
    """Candidate ids in parts of about so many tokens, those of one prompt together."""
    by_prompt: dict[tuple[int, ...], list[str]] = {}
    for candidate_id, item in completions.items():
        by_prompt.setdefault(item.prompt, []).append(candidate_id)
    part: list[str] = []
    num_tokens = 0
    for prompt, candidate_ids in by_prompt.items():
        part += candidate_ids
        num_tokens += len(prompt) + sum(len(completions[candidate_id].completion) for candidate_id in candidate_ids)
        if num_tokens >= tokens_per_part:
            yield part
            part, num_tokens = [], 0
    if part:
        yield part


def _tokens_per_part(model: IRPOModelConfig) -> int:
    options = _reference_options(model.training, model.parallel)
    return PART_MICRO_BATCHES * options.max_tokens_per_micro_batch * data_parallel_size()


def _reference_options(training: TrainingConfig, parallel: ParallelConfig) -> BatchOptions:
    """Like a training step's, in micro batches of up to four times as many tokens.

    Without gradients a layer's activations are gone when the next begins, so that takes no more memory than training a
    model of four layers and more. Attention's mask grows with the square of a row, hence the limit.
    """
    options = batch_options(training, parallel)
    most = max(options.max_tokens_per_micro_batch, min(4 * options.max_tokens_per_micro_batch, MAX_TOKENS))
    return dataclasses.replace(options, max_tokens_per_micro_batch=most)


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


def _covers(stored: Sequence[ReferenceLogprob], completions: Mapping[str, Completion], model_hash: str) -> bool:
    known = {record.candidate_id: record for record in stored}
    return known.keys() == completions.keys() and all(record.model_hash == model_hash for record in stored)


def score_completions(policy: IRPOModel, completions: Sequence[Completion]) -> list[float]:
    """Summed log-prob of each completion, in order, on every rank. All-reduces once over all ranks.

    Completions of one prompt share it; their order and grouping follow from the tokens alone.

    Raises:
        ModelError: A log-prob is not finite.
    """
    options = _reference_options(policy.options.training, policy.options.parallel)
    different = {(item.prompt, item.completion): item for item in completions}
    index_of = {tokens: index for index, tokens in enumerate(different)}
    units = make_units([Example(chosen=item, rejected=None) for item in different.values()], options)
    mine = plan_micro_batches(units, ranks=data_parallel_size(), options=options)[data_parallel_rank()]
    logprobs = torch.zeros(len(different), dtype=torch.float64, device=training_device())
    beat()
    scores = policy.completion_logprobs(make_micro_batches(mine, options))
    for members, sums in zip(mine, scores or [], strict=False):
        indices = [
            index_of[group.prompt, completion]
            for unit in members
            for group in unit.groups
            for completion in group.completions
        ]
        weights = [unit.weight for unit in members for group in unit.groups for _ in group.completions]
        logprobs[indices] += sums.double() * torch.tensor(weights, device=sums.device)
    if not reports_losses():
        logprobs.zero_()
    dist.all_reduce(logprobs)
    if not bool(torch.isfinite(logprobs).all()):
        raise ModelError("reference log-probs: not all are finite; the model's weights hold NaN or infinity")
    values = logprobs.tolist()
    return [values[index_of[item.prompt, item.completion]] for item in completions]
