"""problems ─► candidates: one engine start draws the training candidates and the evaluation generations of M_t."""

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from irpo_nemo.artifacts import hash_model_folder
from irpo_nemo.config import IRPOConfig
from irpo_nemo.grading.pool import GradingPool
from irpo_nemo.pipeline import model_of, splits_of
from irpo_nemo.records import Problem, Verdict
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling import Sampler, open_sampler
from irpo_nemo.sampling.counts import SamplingCounts
from irpo_nemo.sampling.part_statistics import PartStatistics, read_statistics, time_of_others
from irpo_nemo.sampling.parts import WHOLE, Shard, sample_split
from irpo_nemo.sampling.rounds import Judge
from irpo_nemo.stages.frame import StageResult
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import load_tokenizer

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 10.0


def run(config: IRPOConfig, iteration: int | None) -> StageResult:
    """Sample every split of iteration t from M_t; finished parts, of whatever start or shard, are checked and kept."""
    counts, seconds, seeds_honoured = _sample(config, iteration, WHOLE)
    elsewhere = time_of_others(_statistics(config, iteration))
    return StageResult(
        counts={**_total(counts), "seeds_honoured": seeds_honoured, "seconds_elsewhere": elsewhere}, seconds=seconds
    )


def _statistics(config: IRPOConfig, iteration: int | None) -> Iterator[PartStatistics]:
    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    for split in splits_of(config, iteration):
        yield from read_statistics(folder.sampling_statistics(split), folder.samples(split))


def run_shard(config: IRPOConfig, iteration: int | None, shard: Shard) -> None:
    """Sample the parts of one shard."""
    counts, _, _ = _sample(config, iteration, shard)
    logger.info("iteration %s  sample shard %s  %s", iteration, shard, ", ".join(_total(counts)["summary"]))


def _sample(
    config: IRPOConfig, iteration: int | None, shard: Shard
) -> tuple[dict[str, SamplingCounts], dict[str, float], bool | None]:
    """Draw what is missing; return counts and seconds by split, and whether seeds were honoured if any was drawn."""
    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    model = model_of(config, iteration)
    model_hash = hash_model_folder(model)
    tokenizer = load_tokenizer(model, trust_remote_code=config.model.trust_remote_code)
    task = load_task(config)
    seconds: dict[str, float] = {}
    counts: dict[str, SamplingCounts] = {}
    seeds_honoured = None
    with ExitStack() as stack:

        @functools.cache
        def open_engine() -> Sampler:
            nonlocal seeds_honoured
            started = time.perf_counter()
            sampler = open_sampler(config, model)
            stack.callback(sampler.close)
            seconds["load"] = time.perf_counter() - started
            seeds_honoured = sampler.honours_seeds
            return sampler

        def open_judge() -> Judge:
            pool = stack.enter_context(GradingPool(task.grader, config.grading))
            one_at_a_time = threading.Lock()

            def judge(items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
                with one_at_a_time:
                    return [grade.verdict for grade in pool.grade(items)]

            return judge

        for split in splits_of(config, iteration):
            counts[split] = sample_split(
                open_engine,
                tokenizer,
                task,
                config,
                iteration=iteration,
                split=split,
                folder=folder.samples(split),
                model_hash=model_hash,
                shard=shard,
                open_judge=open_judge,
                statistics=folder.sampling_statistics(split),
                on_progress=_log_progress(f"iteration {iteration}  sample {split}"),
            )
            seconds[split] = counts[split].seconds
    return counts, seconds, seeds_honoured


def _log_progress(title: str) -> Callable[[int, int, float], None]:
    """A line now and then."""
    last = time.monotonic()

    def log(done: int, total: int, tokens_per_second: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS and done < total:
            last = time.monotonic()
            logger.info("%s  %d of %d completions  %.0f tokens/s", title, done, total, tokens_per_second)

    return log


def _total(by_split: Mapping[str, SamplingCounts]) -> dict[str, Any]:
    all_counts = by_split.values()
    completions = sum(counts.completions for counts in all_counts)
    tokens = sum(counts.tokens for counts in all_counts)
    truncated = sum(counts.truncated for counts in all_counts)
    fresh = completions - sum(counts.completions_resumed for counts in all_counts)
    seconds = sum(counts.seconds for counts in all_counts)
    summary = [f"{completions} completions", f"{truncated / max(completions, 1):.1%} cut off"]
    if failed := sum(counts.failed for counts in all_counts):
        summary.append(f"{failed} failed")
    if spared := sum(counts.spared for counts in all_counts):
        summary.append(f"{spared} spared")
    if seconds:
        summary.append(f"{fresh / seconds:.0f}/s")
    return {
        "completions": completions,
        "tokens": tokens,
        "truncated": truncated,
        "spared": spared,
        "splits": {split: dataclasses.asdict(counts) for split, counts in by_split.items()},
        "summary": summary,
    }
