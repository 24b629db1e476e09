"""graded candidates ─► preference pairs."""

import dataclasses
from pathlib import Path

from irpo_nemo.artifacts import read_parts, read_records, write_json, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import DataError
from irpo_nemo.model_shape import read_hf_config
from irpo_nemo.pairing import PairingResult, make_pairs, take_pairs
from irpo_nemo.pipeline import TRAINING_SPLIT, model_of, splits_of
from irpo_nemo.records import Candidate, GradedCandidate, PreferencePair
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.stages.frame import StageResult


def run(config: IRPOConfig, iteration: int | None) -> StageResult:
    """Write the pairs of iteration t, and pairs.json: what was left out, and why."""
    assert iteration is not None
    folder = RunFolder(config.run_folder).iteration(iteration)
    if TRAINING_SPLIT in splits_of(config, iteration):
        result = make_pairs(
            read_parts(folder.samples(TRAINING_SPLIT), Candidate),
            read_parts(folder.graded(TRAINING_SPLIT), GradedCandidate),
            config.pairing,
            seed=config.seed,
        )
    else:
        result = _take_given_pairs(config)
    counts = dataclasses.asdict(result.summary)
    write_records(folder.pairs, result.pairs, PreferencePair)
    write_json(folder.pairs_summary, counts)
    problems = f"{result.summary.num_problems_with_pairs} of {result.summary.num_problems} problems"
    return StageResult(counts={**counts, "summary": [f"{len(result.pairs)} pairs", f"from {problems}"]}, seconds={})


def _take_given_pairs(config: IRPOConfig) -> PairingResult:
    """The pairs of `pairing.pairs_path`.

    Raises:
        DataError: They are not in the tokens of the model.
    """
    assert config.pairing.pairs_path is not None
    path = Path(config.pairing.pairs_path)
    pairs = read_records(path, PreferencePair)
    vocabulary = read_hf_config(model_of(config, 0))["vocab_size"]
    sides = (ids for p in pairs for ids in (p.prompt_token_ids, p.chosen_token_ids, p.rejected_token_ids))
    highest = max((token for ids in sides for token in ids), default=0)
    if highest >= vocabulary:
        raise DataError(
            f"{path}: holds token {highest}, but the model's vocabulary has {vocabulary}. "
            "Name the pairs of a run with the same tokenizer."
        )
    return take_pairs(pairs, config.pairing, seed=config.seed)
