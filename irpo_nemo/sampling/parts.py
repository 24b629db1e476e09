"""Sample a split of the problems into Parquet parts, so that an interruption costs the parts at work and no more.

Part k holds the problems [k P, (k+1) P) of the task's order, P = sampler.problems_per_part, with all of their
candidates. Shard i of n draws the parts i, i + n, i + 2n, ... that are not there yet. As a part is whole or absent, and
is always checked against the problems that it should hold, any number of starts, in any order and at the same time,
ends with each candidate once.

    train    num_candidates samples per problem, and the gold solution with pairing.gold_solutions
    test     one greedy completion per problem, and evaluation.num_samples samples

A candidate depends on the model, its prompt and its seed, and the seed on (run seed, iteration, split, candidate id).
So, with a sampler that honours seeds, a part sampled again is the same part.
"""

import collections
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irpo_nemo.artifacts import list_parts, part_path, read_json, write_json, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError, MachineError
from irpo_nemo.records import Candidate, Problem
from irpo_nemo.sampling.counts import SamplingCounts
from irpo_nemo.sampling.part import Part, make_candidates, plan_part, problems_of, read_part
from irpo_nemo.sampling.part_statistics import write_statistics
from irpo_nemo.sampling.rounds import Judge, StopRule, draw_in_rounds
from irpo_nemo.sampling.sampler import Completion, Sampler, SamplingRequest
from irpo_nemo.sampling.split_settings import Split, SplitSettings
from irpo_nemo.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called with completions done, completions in all, and sampled tokens per second."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """The share of one of several processes: every `count`-th part, from `index` on."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, part: int) -> bool:
        return part % self.count == self.index


WHOLE = Shard()


Draw = Callable[[Part], dict[str, Completion]]
"""Gives the completions of a part by candidate id."""


def sample_split(
    open_sampler: Callable[[], Sampler],
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    config: IRPOConfig,
    *,
    iteration: int,
    split: Split,
    folder: Path,
    model_hash: str,
    problems: Sequence[Problem] | None = None,
    shard: Shard = WHOLE,
    statistics: Path | None = None,
    on_progress: Progress | None = None,
    open_judge: Callable[[], Judge] | None = None,
) -> SamplingCounts:
    """Write the candidates of `split` to parts in `folder`; parts that are there already are checked and stay.

    Args:
        open_sampler: Called when there is something to draw; gives the same sampler each time.
        tokenizer: Of the model.
        task: Whose problems are sampled.
        config: Of the run.
        iteration: t.
        split: "train" or "test".
        folder: Of the parts.
        model_hash: Of the model that the sampler holds (`artifacts.hash_model_folder`).
        problems: Instead of the split's.
        shard: Which parts; all of them by default, which also proves that `folder` holds those and no others.
        statistics: Folder that gets the speed and the make-up of each part drawn.
        on_progress: Told after each part.
        open_judge: Called when candidates are drawn in rounds.

    Raises:
        ArtifactError: A part in `folder` is of another model, other settings or other problems.
        MachineError: More than sampler.max_failed_share of a part could not be drawn.
    """
    settings = SplitSettings.of(config, iteration=iteration, split=split, model_hash=model_hash)
    if problems is None:
        problems = task.train_problems() if split == "train" else task.test_problems()
    _claim_folder(folder, settings)
    numbers = [number for number in range(_count_parts(problems, settings)) if shard.owns(number)]
    if shard.count == 1:
        _refuse_other_parts(folder, numbers)
    counts = SamplingCounts()
    total = sum(len(problems_of(number, problems, settings)) for number in numbers) * settings.completions_per_problem

    def plan(wanted: Iterable[int]) -> Iterator[Part]:
        return (plan_part(number, problems, settings, task, tokenizer, folder) for number in wanted)

    def count(part: Part, candidates: Sequence[Candidate], *, resumed: bool) -> None:
        counts.add(candidates, num_wanted=len(part.requests), resumed=resumed)
        if on_progress is not None:
            on_progress(counts.completions + counts.spared, total, counts.tokens_per_second)

    missing = [number for number in numbers if not part_path(folder, number).exists()]
    for part in plan(sorted(set(numbers) - set(missing))):
        count(part, read_part(part, model_hash, settings.stop_rule), resumed=True)
    if missing:
        sampler = open_sampler()
        draw = _make_draw(sampler, settings.stop_rule, open_judge)
        write = functools.partial(
            _draw_and_write, draw=draw, config=config, model_hash=model_hash, statistics=statistics
        )
        began = time.perf_counter()
        for part, candidates in _draw_parts(write, plan(missing), parts_at_once=_parts_at_once(sampler, settings)):
            counts.seconds = time.perf_counter() - began
            count(part, candidates, resumed=False)
    return counts


def _count_parts(problems: Sequence[Problem], settings: SplitSettings) -> int:
    return math.ceil(len(problems) / settings.problems_per_part)


def _make_draw(sampler: Sampler, rule: StopRule | None, open_judge: Callable[[], Judge] | None) -> Draw:
    """How the completions of a part come about: all at once, or in rounds."""
    if rule is None:
        return lambda part: dict(zip(map(_id_of, part.requests), sampler.generate(part.requests), strict=True))
    assert open_judge is not None, "rounds need a judge"
    judge = open_judge()
    return lambda part: draw_in_rounds(
        sampler.generate,
        part.requests,
        {problem.problem_id: problem for problem in part.problems},
        rule=rule,
        judge=judge,
        golds=part.golds,
    )


def _id_of(request: SamplingRequest) -> str:
    return request.candidate_id


def _draw_and_write(
    part: Part, *, draw: Draw, config: IRPOConfig, model_hash: str, statistics: Path | None
) -> list[Candidate]:
    began = time.perf_counter()
    completions = draw(part)
    candidates = make_candidates(part.requests, completions, part.golds, model_hash)
    _refuse_many_failures(part, list(completions.values()), config)
    if statistics is not None:
        seconds = time.perf_counter() - began
        write_statistics(statistics, part.path, candidates, num_wanted=len(part.requests), seconds=seconds)
    write_records(part.path, candidates, Candidate)
    return candidates


def _parts_at_once(sampler: Sampler, settings: SplitSettings) -> int:
    """So many that the sampler's window stays full while one part ends."""
    if not sampler.window:
        return 1
    return 1 + math.ceil(sampler.window / (settings.problems_per_part * settings.completions_per_problem))


def _draw_parts(
    write: Callable[[Part], list[Candidate]], parts: Iterator[Part], *, parts_at_once: int
) -> Iterator[tuple[Part, list[Candidate]]]:
    if parts_at_once == 1:
        yield from ((part, write(part)) for part in parts)
        return
    executor = ThreadPoolExecutor(parts_at_once, thread_name_prefix="part")
    at_work: collections.deque[tuple[Part, Future[list[Candidate]]]] = collections.deque()
    try:
        for part in parts:
            at_work.append((part, executor.submit(write, part)))
            if len(at_work) == parts_at_once:
                first, future = at_work.popleft()
                yield first, future.result()
        while at_work:
            first, future = at_work.popleft()
            yield first, future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)  # the stage closes the sampler, which ends the threads


def _refuse_many_failures(part: Part, completions: Sequence[Completion], config: IRPOConfig) -> None:
    failures = [completion.failure for completion in completions if completion.finish_reason == "failed"]
    if not failures:
        return
    said = f"{len(failures)} of {len(completions)} completions could not be drawn; the first: {failures[0]}"
    if len(failures) > config.sampler.max_failed_share * len(completions):
        raise MachineError(
            f"{part.path}: {said}. Look at the engine's or the server's log, or set sampler.max_failed_share to at "
            f"least {len(failures) / len(completions):.3f} to go on without them."
        )
    logger.warning("%s: %s", part.path, said)


def _claim_folder(folder: Path, settings: SplitSettings) -> None:
    """Note the settings in the folder; if it holds parts already, compare with those that these were made with.

    Raises:
        ArtifactError: They differ.
    """
    path = folder / "settings.json"
    wanted = dataclasses.asdict(settings)
    if not list_parts(folder):
        write_json(path, wanted)
        return
    found: dict[str, Any] = read_json(path)
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ArtifactError(
                f"{folder}: was sampled with {name}={found.get(name)}, but this run has {value}. "
                "Delete the folder to sample again."
            )


def _refuse_other_parts(folder: Path, numbers: Sequence[int]) -> None:
    wanted = {part_path(folder, number) for number in numbers}
    others = [path for path in list_parts(folder) if path not in wanted]
    if others:
        raise ArtifactError(
            f"{others[0]}: holds none of this task's problems, which fill {len(wanted)} parts. "
            f"Delete {folder} to sample again."
        )
