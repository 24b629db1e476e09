"""candidates ─► verdicts, part by part, and from those of the evaluation set the accuracy of M_t."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from irpo_nemo.artifacts import list_parts, read_parts, read_records, write_atomically, write_json, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError
from irpo_nemo.grading import Grade
from irpo_nemo.grading.classes import find_classes
from irpo_nemo.grading.pool import GradingPool
from irpo_nemo.grading.self_test import check_grader
from irpo_nemo.metrics import Evaluation, evaluate
from irpo_nemo.pipeline import EVALUATION_SPLIT, Split, splits_of
from irpo_nemo.records import Candidate, GradedCandidate, Problem
from irpo_nemo.run_folder import IterationFolder, RunFolder
from irpo_nemo.sampling.part_statistics import add_verdicts
from irpo_nemo.stages.frame import StageResult
from irpo_nemo.tasks import Task, load_task

Counts = dict[str, dict[str, int]]
"""Kind of candidate -> verdict -> number."""

_NOT_SAMPLED = Grade(answer=None, verdict="error", layer="sampler")


def run(config: IRPOConfig, iteration: int | None) -> StageResult:
    """Grade every candidate of M_t and write evaluation.json; with an audit, disagreements.jsonl too.

    Raises:
        MachineError: The grader fails its self-test, or cannot run here.
    """
    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    task = load_task(config)
    splits = splits_of(config, iteration)
    with GradingPool(task.grader, config.grading) as pool:
        check_grader(pool)
        for split in splits:
            grade_parts(
                pool,
                _problems_of(task, split),
                samples=folder.samples(split),
                graded=folder.graded(split),
                statistics=folder.sampling_statistics(split),
                votes=split == EVALUATION_SPLIT,
                audit=config.grading.audit,
            )
    evaluation = evaluate(read_parts(folder.graded(EVALUATION_SPLIT), GradedCandidate), task.test_problems())
    write_json(folder.evaluation, evaluation.to_json())
    counts: dict[str, Any] = {"verdicts": {split: _count_verdicts(folder.graded(split)) for split in splits}}
    summary = _summarize(iteration, evaluation, counts["verdicts"])
    if config.grading.audit:
        counts["disputed"] = _write_disagreements(folder, splits)
        summary.append(f"{counts['disputed']} disputed, see {folder.disagreements}")
    return StageResult(counts={**counts, "summary": summary}, seconds={})


def _problems_of(task: Task, split: Split) -> list[Problem]:
    return task.test_problems() if split == EVALUATION_SPLIT else task.train_problems()


def grade_parts(
    pool: GradingPool,
    problems: Iterable[Problem],
    *,
    samples: Path,
    graded: Path,
    statistics: Path | None = None,
    votes: bool = False,
    audit: bool = False,
) -> None:
    """Grade each part in `samples` that has no part in `graded` yet.

    Args:
        pool: Of the task's grader.
        problems: Those that were sampled.
        samples: Folder of parts of `Candidate`.
        graded: Folder of parts of `GradedCandidate`.
        statistics: Of the samples; gets the share of unparsable ones.
        votes: Say of each problem's samples which answers mean the same.
        audit: Ask the second grader too.
    """
    by_id = {problem.problem_id: problem for problem in problems}
    for part in list_parts(samples):
        target = graded / part.name
        if target.exists():
            continue
        grades = list(_grade_candidates(pool, by_id, read_records(part, Candidate), audit=audit))
        if votes:
            grades = _classify_samples(pool, grades)
        if statistics is not None:
            add_verdicts(statistics, part, grades)
        write_records(target, grades, GradedCandidate)


def _grade_candidates(
    pool: GradingPool, problems: Mapping[str, Problem], candidates: Sequence[Candidate], *, audit: bool
) -> Iterator[GradedCandidate]:
    problem_of = {candidate.problem_id: _find_problem(problems, candidate) for candidate in candidates}
    items = [(problem_of[c.problem_id], c.text) for c in candidates if c.finish_reason != "failed"]
    grades = pool.grade_twice(items) if audit else ((grade, None) for grade in pool.grade(items))
    for candidate in candidates:
        grade, second = (_NOT_SAMPLED, None) if candidate.finish_reason == "failed" else next(grades)
        yield GradedCandidate(
            candidate_id=candidate.candidate_id,
            problem_id=candidate.problem_id,
            kind=candidate.kind,
            index=candidate.index,
            gold_answer=problem_of[candidate.problem_id].gold_answer,
            answer=grade.answer,
            verdict=grade.verdict,
            layer=grade.layer,
            audit_answer=second.answer if second else None,
            audit_verdict=second.verdict if second else None,
        )


def _find_problem(problems: Mapping[str, Problem], candidate: Candidate) -> Problem:
    if candidate.problem_id not in problems:
        raise ArtifactError(
            f"{candidate.candidate_id}: is no candidate of this task's problems. "
            f"Delete the iteration's samples folder and run `irpo run` again."
        )
    return problems[candidate.problem_id]


def _classify_samples(pool: GradingPool, graded: Sequence[GradedCandidate]) -> list[GradedCandidate]:
    """Say of the samples of each problem which answers mean the same, for the majority vote."""
    samples = [grade for grade in graded if grade.kind == "sample"]
    groups = [list(group) for _, group in itertools.groupby(samples, key=lambda grade: grade.problem_id)]
    grades = [[Grade(answer=g.answer, verdict=g.verdict, layer=g.layer) for g in group] for group in groups]
    class_of = {
        member.candidate_id: None if place is None else group[place].index
        for group, classes in zip(groups, find_classes(grades, pool.compare), strict=True)
        for member, place in zip(group, classes, strict=True)
    }
    return [dataclasses.replace(grade, answer_class=class_of.get(grade.candidate_id)) for grade in graded]


def _count_verdicts(graded: Path) -> Counts:
    """All verdicts by kind of candidate."""
    verdicts: dict[str, Counter[str]] = {}
    for grade in read_parts(graded, GradedCandidate):
        verdicts.setdefault(grade.kind, Counter())[grade.verdict] += 1
    return {kind: dict(sorted(counter.items())) for kind, counter in sorted(verdicts.items())}


def _summarize(iteration: int, evaluation: Evaluation, verdicts: Mapping[str, Counts]) -> list[str]:
    low, high = evaluation.accuracy_ci95
    summary = [f"M_{iteration} accuracy {evaluation.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"]
    sampled = [counter for kinds in verdicts.values() for kind, counter in kinds.items() if kind != "gold"]
    if num_unparsable := sum(counter.get("unparsable", 0) for counter in sampled):
        summary.append(f"{num_unparsable / sum(sum(counter.values()) for counter in sampled):.1%} unparsable")
    if num_errors := sum(counter.get("error", 0) for counter in sampled):
        summary.append(f"{num_errors} answers that the grader failed on")
    return summary


def _write_disagreements(folder: IterationFolder, splits: Iterable[Split]) -> int:
    """Write what the grader and its auditor judge differently, for a person to look at; the number of lines."""
    count = 0

    def write(path: Path) -> None:
        nonlocal count
        with path.open("w", encoding="utf-8") as file:
            for grade, text in _find_disputed(folder, splits):
                row = dataclasses.asdict(grade) | {"text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1

    write_atomically(folder.disagreements, write)
    return count


def _find_disputed(folder: IterationFolder, splits: Iterable[Split]) -> Iterator[tuple[GradedCandidate, str]]:
    """Disputed candidates with their texts, holding one part in memory."""
    for split in splits:
        for part in list_parts(folder.graded(split)):
            disputed = {g.candidate_id: g for g in read_records(part, GradedCandidate) if g.is_disputed}
            if disputed:
                for candidate in read_records(folder.samples(split) / part.name, Candidate):
                    if candidate.candidate_id in disputed:
                        yield disputed[candidate.candidate_id], candidate.text
