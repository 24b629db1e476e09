"""Sample a split of the problems into Parquet parts, so that an interruption costs one part at most.

Part k holds the problems [k P, (k+1) P) of the task's order, P = sampler.problems_per_part:

    train    num_candidates samples per problem, and the gold solution with pairing.gold_solutions
    test     one greedy completion per problem, and evaluation.num_samples samples

A candidate depends on the model, its prompt and its seed, and the seed on (run seed, iteration, split, candidate id).
So a part sampled again is the same part.
"""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from irpo_nemo.artifacts import list_parts, part_path, read_json, read_records, write_json, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError
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
        if resumed:
            self.completions_resumed += len(drawn)
            self.tokens_resumed += tokens


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
        )


def sample_split(
    sampler: Sampler,
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    config: IRPOConfig,
    *,
    iteration: int,
    split: Split,
    folder: Path,
    model_hash: str,
    on_progress: Progress | None = None,
) -> SamplingCounts:
    """Write the candidates of `split` to parts in `folder`; parts that are there already stay.

    Args:
        model_hash: Of the model that `sampler` holds (`artifacts.hash_model_folder`).

    Raises:
        ArtifactError: A part in `folder` is of another model, other settings or other problems.
    """
    settings = SplitSettings.of(config, iteration=iteration, split=split, model_hash=model_hash)
    problems = task.train_problems() if split == "train" else task.test_problems()
    _claim_folder(folder, settings)
    counts = SamplingCounts()
    total = len(problems) * (settings.num_greedy + settings.num_samples)
    for part, start in enumerate(range(0, len(problems), settings.problems_per_part)):
        path = part_path(folder, part)
        group = problems[start : start + settings.problems_per_part]
        prompts = encode_prompts(tokenizer, [task.prompt(problem) for problem in group])
        requests = list(_requests(group, prompts, settings))
        golds = _gold_candidates(group, prompts, task, tokenizer, settings)
        resumed = path.exists()
        if resumed:
            candidates = _read_part(path, requests, golds, model_hash)
        else:
            began = time.perf_counter()
            completions = sampler.generate(requests)
            counts.seconds += time.perf_counter() - began
            candidates = _candidates(requests, completions, golds, model_hash)
            write_records(path, candidates, Candidate)
        counts.add(candidates, resumed=resumed)
        if on_progress is not None:
            on_progress(counts.completions, total, counts.tokens_per_second)
    return counts


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


def _read_part(
    path: Path, requests: Sequence[SamplingRequest], golds: dict[str, Candidate], model_hash: str
) -> list[Candidate]:
    """Read a finished part.

    Raises:
        ArtifactError: It is of another model or of other problems.
    """
    candidates = read_records(path, Candidate)
    hashes = {candidate.model_hash for candidate in candidates}
    if hashes != {model_hash}:
        found = ", ".join(sorted(name[:12] for name in hashes)) or "none"
        raise ArtifactError(
            f"{path}: was sampled from model {found}, but this iteration starts from {model_hash[:12]}. "
            f"Delete {path.parent} to sample again."
        )
    found_prompts = {candidate.candidate_id: candidate.prompt_token_ids for candidate in candidates}
    wanted_prompts = {request.candidate_id: request.prompt_token_ids for request in requests}
    wanted_prompts |= {gold.candidate_id: gold.prompt_token_ids for gold in golds.values()}
    if found_prompts != wanted_prompts:
        raise ArtifactError(
            f"{path}: holds other problems or prompts than the task. Delete {path.parent} to sample again."
        )
    return candidates
