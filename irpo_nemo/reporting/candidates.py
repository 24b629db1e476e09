"""Candidates beside their verdicts and without their token ids, problem by problem, as the report shows them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from irpo_nemo.artifacts import list_parts, read_columns
from irpo_nemo.errors import ArtifactError
from irpo_nemo.records import Candidate, CandidateKind, FinishReason, GradedCandidate, PreferencePair, Verdict
from irpo_nemo.run_folder import IterationFolder

_SAMPLED = ("candidate_id", "token_ids", "text", "finish_reason")
_GRADED = ("candidate_id", "problem_id", "kind", "index", "gold_answer", "answer", "verdict", "layer", "audit_verdict")


@dataclass(frozen=True, slots=True)
class JudgedCandidate:
    """One completion and what the grader said of it."""

    kind: CandidateKind
    index: int
    verdict: Verdict
    layer: str
    answer: str | None
    audit_verdict: Verdict | None
    finish_reason: FinishReason
    num_tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class JudgedProblem:
    """All completions of one problem by one model."""

    problem_id: str
    gold_answer: str
    candidates: list[JudgedCandidate]


Pair = tuple[str, str]
"""Chosen and rejected candidate, each as `<kind>/<index>`."""


def read_problems(folder: IterationFolder, split: str) -> Iterator[JudgedProblem]:
    """Yield the graded problems of a split in their order, holding one part in memory."""
    for part in _graded_parts(folder, split):
        yield from _read_part(folder.samples(split) / part.name, part)


def find_problem(folder: IterationFolder, split: str, problem_id: str) -> JudgedProblem | None:
    """Look one problem up; None when the split has none of that name."""
    for part in _graded_parts(folder, split):
        for problem in _read_part(folder.samples(split) / part.name, part, problem_id=problem_id):
            return problem
    return None


def read_pairs(folder: IterationFolder, problem_id: str | None = None) -> dict[str, list[Pair]]:
    """The pairs of each problem that has some, in their order, or of one problem; none before they are made."""
    if not folder.pairs.exists():
        return {}
    columns = ("problem_id", "chosen_id", "rejected_id")
    table = read_columns(folder.pairs, PreferencePair, columns, problem_id=problem_id)
    pairs: dict[str, list[Pair]] = {}
    for name, chosen, rejected in zip(*(column.to_pylist() for column in table.columns), strict=True):
        pairs.setdefault(name, []).append((_within_problem(chosen), _within_problem(rejected)))
    return pairs


def _within_problem(candidate_id: str) -> str:
    """`<kind>/<index>` of `<problem_id>/<kind>/<index>`."""
    return "/".join(candidate_id.rsplit("/", 2)[1:])


def _graded_parts(folder: IterationFolder, split: str) -> Sequence[Path]:
    return list_parts(folder.graded(split))


def _read_part(sampled: Path, graded: Path, *, problem_id: str | None = None) -> Iterator[JudgedProblem]:
    import pyarrow.compute as pc

    samples = read_columns(sampled, Candidate, _SAMPLED, problem_id=problem_id)
    grades = read_columns(graded, GradedCandidate, _GRADED, problem_id=problem_id)
    if samples["candidate_id"].to_pylist() != grades["candidate_id"].to_pylist():
        raise ArtifactError(
            f"{graded}: does not hold the candidates of {sampled} in their order. "
            "Delete the iteration's graded folder and run `irpo run` again."
        )
    judged = zip(
        *(grades[name].to_pylist() for name in ("kind", "index", "verdict", "layer", "answer", "audit_verdict")),
        samples["finish_reason"].to_pylist(),
        pc.list_value_length(samples["token_ids"]).to_pylist(),
        samples["text"].to_pylist(),
        strict=True,
    )
    rows = zip(grades["problem_id"].to_pylist(), grades["gold_answer"].to_pylist(), judged, strict=True)
    for name, group in itertools.groupby(rows, key=lambda row: row[0]):
        members = list(group)
        yield JudgedProblem(name, members[0][1], [JudgedCandidate(*fields) for _, _, fields in members])
