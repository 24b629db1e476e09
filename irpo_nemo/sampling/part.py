"""One part: what it should hold, made into candidates when it was drawn, and checked when it was there already."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from irpo_nemo.artifacts import part_path, read_records
from irpo_nemo.errors import ArtifactError
from irpo_nemo.records import Candidate, CandidateKind, Problem
from irpo_nemo.sampling.rounds import StopRule, could_have_stopped
from irpo_nemo.sampling.sampler import Completion, SamplingRequest
from irpo_nemo.sampling.split_settings import SplitSettings, derive_seed
from irpo_nemo.tasks import Task
from irpo_nemo.tokenization import decode, encode_completion, encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part to be read or drawn."""

    number: int
    path: Path
    problems: Sequence[Problem]
    requests: list[SamplingRequest]
    golds: dict[str, Candidate]


def problems_of(number: int, problems: Sequence[Problem], settings: SplitSettings) -> Sequence[Problem]:
    """The problems of part `number`."""
    return problems[number * settings.problems_per_part : (number + 1) * settings.problems_per_part]


def plan_part(
    number: int,
    problems: Sequence[Problem],
    settings: SplitSettings,
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
) -> Part:
    """Encode the prompts of a part and number its candidates."""
    group = problems_of(number, problems, settings)
    prompts = encode_prompts(
        tokenizer, [task.prompt(problem) for problem in group], chat_template=settings.chat_template
    )
    return Part(
        number=number,
        path=part_path(folder, number),
        problems=group,
        requests=list(_requests(group, prompts, settings)),
        golds=_gold_candidates(group, prompts, task, tokenizer, settings),
    )


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


def make_candidates(
    requests: Sequence[SamplingRequest],
    completions: Mapping[str, Completion],
    golds: dict[str, Candidate],
    model_hash: str,
) -> list[Candidate]:
    """Problem by problem: what was drawn, in the order of the requests, and then the gold solution."""
    by_problem: dict[str, list[Candidate]] = {}
    for request in requests:
        completion = completions.get(request.candidate_id)
        if completion is None:
            continue
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


def read_part(part: Part, model_hash: str, rule: StopRule | None) -> list[Candidate]:
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
    requests: Iterable[SamplingRequest] = part.requests
    if rule is not None and could_have_stopped(part.requests, found_prompts, round_size=rule.round_size):
        requests = (request for request in part.requests if request.candidate_id in found_prompts)
    wanted_prompts = {request.candidate_id: request.prompt_token_ids for request in requests}
    wanted_prompts |= {gold.candidate_id: gold.prompt_token_ids for gold in part.golds.values()}
    if found_prompts != wanted_prompts or len(candidates) != len(wanted_prompts):
        raise ArtifactError(
            f"{part.path}: holds other problems or prompts than the task. Delete {part.path.parent} to sample again."
        )
    return candidates
