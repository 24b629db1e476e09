"""The real GSM8K files through every stage. The model is far too small to solve them; we check the plumbing."""

from pathlib import Path

import pytest

from irpo_nemo.artifacts import read_json, read_parts, read_records
from irpo_nemo.config_files import load_config
from irpo_nemo.records import Candidate, GradedCandidate, PreferencePair
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import decode, load_tokenizer
from tests.e2e.runs import finish_run

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"GSM8K's files are not in {DATA}"),
]

NUM_TRAIN, NUM_TEST, NUM_CANDIDATES = 60, 20, 2


@pytest.fixture(scope="module")
def overrides() -> tuple[str, ...]:
    return (
        f"task.train_path={DATA / 'gsm8k_train.jsonl.gz'}",
        f"task.test_path={DATA / 'gsm8k_test.jsonl'}",
        f"task.max_train_problems={NUM_TRAIN}",
        f"task.max_test_problems={NUM_TEST}",
        "model.hidden_size=32",
        "model.num_layers=2",
        "model.ffn_hidden_size=48",
        "sft.max_steps=4",
        f"sampling.num_candidates={NUM_CANDIDATES}",
        "sampling.max_new_tokens=48",
        "evaluation.num_samples=2",
        "training.max_steps=2",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, overrides: tuple[str, ...]) -> Path:
    root = tmp_path_factory.mktemp("gsm8k")
    finish_run(root, *overrides, config="gsm8k_tiny")
    return root / "run"


def test_prompts_are_the_papers_and_decode_to_the_question(run: Path, overrides: tuple[str, ...]) -> None:
    task = load_task(load_config("gsm8k_tiny", overrides))
    questions = {problem.problem_id: problem.question for problem in task.train_problems()}
    tokenizer = load_tokenizer(run / "m0" / "hf", trust_remote_code=False)
    candidates = list(read_parts(run / "iteration_00" / "samples" / "train", Candidate))
    assert len(questions) == NUM_TRAIN
    assert len(candidates) == NUM_TRAIN * (NUM_CANDIDATES + 1)
    for candidate in candidates:
        prompt = decode(tokenizer, candidate.prompt_token_ids)
        assert questions[candidate.problem_id] in prompt
        assert prompt.startswith("Your task is to answer the question below.")
        assert candidate.prompt_token_ids.count(tokenizer.bos_token_id) == 1


def test_every_gold_solution_is_graded_correct(run: Path) -> None:
    grades = list(read_parts(run / "iteration_00" / "graded" / "train", GradedCandidate))
    gold = [grade for grade in grades if grade.kind == "gold"]
    assert len(gold) == NUM_TRAIN
    assert {grade.verdict for grade in gold} == {"correct"}


def test_pairs_prefer_the_gold_solution_and_are_all_accounted_for(run: Path) -> None:
    pairs = read_records(run / "iteration_00" / "pairs.parquet", PreferencePair)
    summary = read_json(run / "iteration_00" / "pairs.json")
    verdicts = {
        grade.candidate_id: grade.verdict
        for grade in read_parts(run / "iteration_00" / "graded" / "train", GradedCandidate)
    }
    assert len(pairs) == summary["num_pairs"] > 0
    assert summary["num_problems"] == NUM_TRAIN
    without = sum(summary["num_problems_without_pairs"].values())
    assert summary["num_problems_with_pairs"] + without == NUM_TRAIN
    assert {verdicts[pair.chosen_id] for pair in pairs} == {"correct"}
    assert {verdicts[pair.rejected_id] for pair in pairs} <= {"wrong", "unparsable"}
