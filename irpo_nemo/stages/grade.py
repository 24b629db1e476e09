"""candidates ─► verdicts, part by part, and from those of the evaluation set the accuracy of M_t."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from irpo_nemo.artifacts import list_parts, read_parts, read_records, write_json, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError
from irpo_nemo.grading import GRADERS, Grade, Grader
from irpo_nemo.metrics import evaluate
from irpo_nemo.pipeline import EVALUATION_SPLIT, splits_of
from irpo_nemo.records import Candidate, GradedCandidate, Problem
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.stages.frame import StageResult
from irpo_nemo.tasks import load_task

_NOT_DRAWN = Grade(answer=None, verdict="error", layer="sampler")
"""Of a candidate that the sampler could not draw."""


def run(config: IRPOConfig, iteration: int | None) -> StageResult:
    """Grade every candidate of M_t and write evaluation.json."""
    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    task = load_task(config)
    verdicts = {}
    for split in splits_of(config, iteration):
        problems = task.test_problems() if split == EVALUATION_SPLIT else task.train_problems()
        verdicts[split] = grade_parts(GRADERS[task.grader], problems, folder.samples(split), folder.graded(split))
    evaluation = evaluate(read_parts(folder.graded(EVALUATION_SPLIT), GradedCandidate))
    write_json(folder.evaluation, evaluation.to_json())
    low, high = evaluation.accuracy_ci95
    summary = [f"M_{iteration} accuracy {evaluation.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"]
    return StageResult(counts={"verdicts": verdicts, "summary": summary}, seconds={})


def grade_parts(grader: Grader, problems: Iterable[Problem], samples: Path, graded: Path) -> dict[str, dict[str, int]]:
    """Grade each part of `samples` that has no graded part yet; count all verdicts by kind of candidate."""
    by_id = {problem.problem_id: problem for problem in problems}
    verdicts: dict[str, Counter[str]] = {}
    for part in list_parts(samples):
        target = graded / part.name
        if not target.exists():
            candidates = read_records(part, Candidate)
            write_records(target, [_grade(grader, by_id, c) for c in candidates], GradedCandidate)
        for grade in read_records(target, GradedCandidate):
            verdicts.setdefault(grade.kind, Counter())[grade.verdict] += 1
    return {kind: dict(sorted(counter.items())) for kind, counter in sorted(verdicts.items())}


def _grade(grader: Grader, problems: dict[str, Problem], candidate: Candidate) -> GradedCandidate:
    problem = problems.get(candidate.problem_id)
    if problem is None:
        raise ArtifactError(
            f"{candidate.candidate_id}: is no candidate of this task's problems. "
            f"Delete the iteration's samples folder and run `irpo run` again."
        )
    grade = _NOT_DRAWN if candidate.finish_reason == "failed" else grader.grade(problem, candidate.text)
    return GradedCandidate(
        candidate_id=candidate.candidate_id,
        problem_id=candidate.problem_id,
        kind=candidate.kind,
        index=candidate.index,
        gold_answer=problem.gold_answer,
        answer=grade.answer,
        verdict=grade.verdict,
        layer=grade.layer,
    )
