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
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from irpo_nemo.artifacts import list_parts, part_path, read_json, read_records, write_json, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError, MachineError
from irpo_nemo.records import Candidate, CandidateKind, Problem
from irpo_nemo.sampling.sampler import Completion, Sampler, SamplingRequest
from irpo_nemo.tasks import Task
from irpo_nemo.tokenization import decode, encode_completion, encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Split = Literal["train", "test"]

Progress = Callable[[int, int, float], None]
"""Called with completions done, completions in all, and sampled tokens per second."""


@dataclasses.dataclass(kw_only=True)
class SamplingCounts:
    """What one split came to, finished parts of an earlier start included."""

    problems: int = 0
    completions: int = 0
    """Sampled and greedy; gold solutions are not counted."""
    tokens: int = 0
    truncated: int = 0
    """Completions that ran out of tokens."""
    duplicates: int = 0
    """Samples with the token ids of an earlier one of their problem."""
    failed: int = 0
    """Completions that the sampler could not draw."""
    completions_resumed: int = 0
    """Completions of parts that were there already."""
    tokens_resumed: int = 0
    seconds: float = 0.0
    """Spent on the parts that were not there already."""

    @property
    def truncated_share(self) -> float:
        return self.truncated / self.completions if self.completions else 0.0

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens - self.tokens_resumed) / self.seconds if self.seconds else 0.0

    def add(self, candidates: Sequence[Candidate], *, resumed: bool) -> None:
        """Count one part."""
        drawn = [candidate for candidate in candidates if candidate.kind != "gold"]
        tokens = sum(len(candidate.token_ids) for candidate in drawn)
        self.problems += len({candidate.problem_id for candidate in candidates})
        self.completions += len(drawn)
        self.tokens += tokens
        self.truncated += sum(candidate.finish_reason == "length" for candidate in drawn)
        self.failed += sum(candidate.finish_reason == "failed" for candidate in drawn)
        self.duplicates += count_duplicates(candidates)
        if resumed:
            self.completions_resumed += len(drawn)
            self.tokens_resumed += tokens


def count_duplicates(candidates: Iterable[Candidate]) -> int:
    """Samples whose token ids another sample of the same problem had first."""
    samples = [candidate for candidate in candidates if candidate.kind == "sample" and candidate.token_ids]
    return len(samples) - len({(candidate.problem_id, tuple(candidate.token_ids)) for candidate in samples})


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """One part to be read or drawn."""

    number: int
    path: Path
    requests: list[SamplingRequest]
    golds: dict[str, Candidate]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """All that the candidates of one split depend on beside the problems; kept beside the parts."""

    model_hash: str
    iteration: int
    split: Split
    seed: int
    num_greedy: int
    num_samples: int
    gold_solutions: bool
    temperature: float
    top_p: float
    max_new_tokens: int
    problems_per_part: int
    chat_template: str

    @property
    def completions_per_problem(self) -> int:
        return self.num_greedy + self.num_samples

    @classmethod
    def of(cls, config: IRPOConfig, *, iteration: int, split: Split, model_hash: str) -> "SplitSettings":
        """The settings of one split of an iteration."""
        is_train = split == "train"
        return cls(
            model_hash=model_hash,
            iteration=iteration,
            split=split,
            seed=config.seed,
            num_greedy=0 if is_train else 1,
            num_samples=config.sampling.num_candidates if is_train else config.evaluation.num_samples,
            gold_solutions=is_train and config.pairing.gold_solutions,
            temperature=config.temperature_of(iteration) if is_train else config.evaluation.temperature,
            top_p=config.sampling.top_p if is_train else config.evaluation.top_p,
            max_new_tokens=config.sampling.max_new_tokens,
            problems_per_part=config.sampler.problems_per_part,
            chat_template=config.task.chat_template,
        )


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
    shard: Shard = WHOLE,
    statistics: Path | None = None,
    on_progress: Progress | None = None,
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
        shard: Which parts; all of them by default, which also proves that `folder` holds those and no others.
        statistics: Gets a line of JSON with the speed of each part drawn.
        on_progress: Told after each part.

    Raises:
        ArtifactError: A part in `folder` is of another model, other settings or other problems.
        MachineError: More than sampler.max_failed_share of a part could not be drawn.
    """
    settings = SplitSettings.of(config, iteration=iteration, split=split, model_hash=model_hash)
    problems = task.train_problems() if split == "train" else task.test_problems()
    _claim_folder(folder, settings)
    numbers = [number for number in range(_count_parts(problems, settings)) if shard.owns(number)]
    if shard.count == 1:
        _refuse_other_parts(folder, numbers)
    counts = SamplingCounts()
    total = sum(len(_problems_of(number, problems, settings)) for number in numbers) * settings.completions_per_problem

    def plan(wanted: Iterable[int]) -> Iterator[_Part]:
        return (_plan_part(number, problems, settings, task, tokenizer, folder) for number in wanted)

    def count(candidates: Sequence[Candidate], *, resumed: bool) -> None:
        counts.add(candidates, resumed=resumed)
        if on_progress is not None:
            on_progress(counts.completions, total, counts.tokens_per_second)

    missing = [number for number in numbers if not part_path(folder, number).exists()]
    for part in plan(sorted(set(numbers) - set(missing))):
        count(_read_part(part, model_hash), resumed=True)
    if missing:
        sampler = open_sampler()
        began = time.perf_counter()
        for part, candidates in _draw_parts(sampler, plan(missing), config, settings, statistics):
            counts.seconds = time.perf_counter() - began
            logger.debug("%s: %d candidates", part.path, len(candidates))
            count(candidates, resumed=False)
    return counts


def _count_parts(problems: Sequence[Problem], settings: SplitSettings) -> int:
    return math.ceil(len(problems) / settings.problems_per_part)


def _problems_of(number: int, problems: Sequence[Problem], settings: SplitSettings) -> Sequence[Problem]:
    return problems[number * settings.problems_per_part : (number + 1) * settings.problems_per_part]


def _plan_part(
    number: int,
    problems: Sequence[Problem],
    settings: SplitSettings,
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
) -> _Part:
    group = _problems_of(number, problems, settings)
    prompts = encode_prompts(
        tokenizer, [task.prompt(problem) for problem in group], chat_template=settings.chat_template
    )
    return _Part(
        number=number,
        path=part_path(folder, number),
        requests=list(_requests(group, prompts, settings)),
        golds=_gold_candidates(group, prompts, task, tokenizer, settings),
    )


def _draw_parts(
    sampler: Sampler, parts: Iterator[_Part], config: IRPOConfig, settings: SplitSettings, statistics: Path | None
) -> Iterator[tuple[_Part, list[Candidate]]]:
    """Draw and write parts, so many at once that the sampler's window stays full while one part ends."""

    def draw(part: _Part) -> list[Candidate]:
        began = time.perf_counter()
        completions = sampler.generate(part.requests)
        candidates = _candidates(part.requests, completions, part.golds, settings.model_hash)
        _refuse_many_failures(part, completions, config)
        write_records(part.path, candidates, Candidate)
        if statistics is not None:
            _append_statistics(statistics, part, candidates, time.perf_counter() - began)
        return candidates

    if not sampler.window:
        yield from ((part, draw(part)) for part in parts)
        return
    requests_per_part = settings.problems_per_part * settings.completions_per_problem
    executor = ThreadPoolExecutor(1 + math.ceil(sampler.window / requests_per_part), thread_name_prefix="part")
    at_work: collections.deque[tuple[_Part, Future[list[Candidate]]]] = collections.deque()
    try:
        for part in parts:
            at_work.append((part, executor.submit(draw, part)))
            if len(at_work) == executor._max_workers:
                first, future = at_work.popleft()
                yield first, future.result()
        while at_work:
            first, future = at_work.popleft()
            yield first, future.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)  # the stage closes the sampler, which ends the threads


def _refuse_many_failures(part: _Part, completions: Sequence[Completion], config: IRPOConfig) -> None:
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


def _append_statistics(path: Path, part: _Part, candidates: Sequence[Candidate], seconds: float) -> None:
    counts = SamplingCounts(seconds=seconds)
    counts.add(candidates, resumed=False)
    line = {
        "part": part.number,
        "problems": counts.problems,
        "completions": counts.completions,
        "tokens": counts.tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(counts.tokens_per_second, 1),
        "problems_per_second": round(counts.problems / seconds, 3),
        "truncated_share": round(counts.truncated_share, 4),
        "duplicates": counts.duplicates,
        "failed": counts.failed,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def derive_seed(settings: SplitSettings, candidate_id: str) -> int:
    """A seed for one candidate, below 2^64: different candidates, splits and iterations get unrelated ones."""
    identity = f"{settings.seed}\0{settings.iteration}\0{settings.split}\0{candidate_id}"
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")


def _requests(
    problems: Sequence[Problem], prompts: Sequence[list[int]], settings: SplitSettings
) -> Iterator[SamplingRequest]:
    numbered: list[tuple[CandidateKind, int]] = [("greedy", index) for index in range(settings.num_greedy)]
    numbered += [("sample", index) for index in range(settings.num_samples)]
    for problem, prompt in zip(problems, prompts, strict=True):
        for kind, index in numbered:
            candidate_id = f"{problem.problem_id}/{kind}/{index}"
            yield SamplingRequest(
                candidate_id=candidate_id,
                problem_id=problem.problem_id,
                kind=kind,
                index=index,
                prompt_token_ids=prompt,
                temperature=0.0 if kind == "greedy" else settings.temperature,
                top_p=settings.top_p,
                max_new_tokens=settings.max_new_tokens,
                seed=derive_seed(settings, candidate_id),
            )


def _gold_candidates(
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    settings: SplitSettings,
) -> dict[str, Candidate]:
    """The worked solutions in the model's tokens, by problem; none unless they may win pairs."""
    golds: dict[str, Candidate] = {}
    for problem, prompt in zip(problems, prompts, strict=True):
        text = task.gold_completion(problem) if settings.gold_solutions else None
        if text is None:
            continue
        token_ids = encode_completion(tokenizer, text)
        golds[problem.problem_id] = Candidate(
            candidate_id=f"{problem.problem_id}/gold/0",
            problem_id=problem.problem_id,
            kind="gold",
            index=0,
            prompt_token_ids=prompt,
            token_ids=token_ids,
            text=decode(tokenizer, token_ids),
            finish_reason="stop",
            model_hash=settings.model_hash,
        )
    return golds


def _candidates(
    requests: Sequence[SamplingRequest],
    completions: Sequence[Completion],
    golds: dict[str, Candidate],
    model_hash: str,
) -> list[Candidate]:
    """Problem by problem: what was drawn, in the order of the requests, and then the gold solution."""
    by_problem: dict[str, list[Candidate]] = {}
    for request, completion in zip(requests, completions, strict=True):
        candidate = Candidate(
            candidate_id=request.candidate_id,
            problem_id=request.problem_id,
            kind=request.kind,
            index=request.index,
            prompt_token_ids=request.prompt_token_ids,
            token_ids=completion.token_ids,
            text=completion.text,
            finish_reason=completion.finish_reason,
            model_hash=model_hash,
        )
        by_problem.setdefault(request.problem_id, []).append(candidate)
    for problem_id, gold in golds.items():
        by_problem[problem_id].append(gold)
    return [candidate for group in by_problem.values() for candidate in group]


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


def _read_part(part: _Part, model_hash: str) -> list[Candidate]:
    """Read a finished part.

    Raises:
        ArtifactError: It is of another model or of other problems.
    """
    candidates = read_records(part.path, Candidate)
    hashes = {candidate.model_hash for candidate in candidates}
    if hashes != {model_hash}:
        found = ", ".join(sorted(name[:12] for name in hashes)) or "none"
        raise ArtifactError(
            f"{part.path}: was sampled from model {found}, but this iteration starts from {model_hash[:12]}. "
            f"Delete {part.path.parent} to sample again."
        )
    found_prompts = {candidate.candidate_id: candidate.prompt_token_ids for candidate in candidates}
    wanted_prompts = {request.candidate_id: request.prompt_token_ids for request in part.requests}
    wanted_prompts |= {gold.candidate_id: gold.prompt_token_ids for gold in part.golds.values()}
    if found_prompts != wanted_prompts or len(candidates) != len(wanted_prompts):
        raise ArtifactError(
            f"{part.path}: holds other problems or prompts than the task. Delete {part.path.parent} to sample again."
        )
    return candidates
