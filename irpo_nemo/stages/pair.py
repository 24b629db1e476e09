"""graded candidates ─► preference pairs."""

import dataclasses

from irpo_nemo.artifacts import read_parts, write_json, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.pairing import make_pairs
from irpo_nemo.pipeline import TRAINING_SPLIT
from irpo_nemo.records import Candidate, GradedCandidate, PreferencePair
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.stages.frame import StageResult


def run(config: IRPOConfig, iteration: int | None) -> StageResult:
    """Write the pairs of iteration t, and pairs.json: what was left out, and why."""
    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    result = make_pairs(
        read_parts(folder.samples(TRAINING_SPLIT), Candidate),
        read_parts(folder.graded(TRAINING_SPLIT), GradedCandidate),
        config.pairing,
        seed=config.seed,
    )
    counts = dataclasses.asdict(result.summary)
    write_records(folder.pairs, result.pairs, PreferencePair)
    write_json(folder.pairs_summary, counts)
    problems = f"{result.summary.num_problems_with_pairs} of {result.summary.num_problems} problems"
    return StageResult(counts={**counts, "summary": [f"{len(result.pairs)} pairs", f"from {problems}"]}, seconds={})
