"""A small run whose files are made by hand: what the report reads, and nothing that a model made."""

import json
from pathlib import Path
from typing import Any

from irpo_nemo.artifacts import Manifest, part_path, write_json, write_manifest, write_records, write_text
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import dump_config, load_config
from irpo_nemo.metrics import evaluate
from irpo_nemo.records import Candidate, GradedCandidate, PreferencePair
from irpo_nemo.run_folder import IterationFolder, ModelZeroFolder, RunFolder

NASTY = (
    "<script>document.title = 'broken'</script></script><img src=x onerror=\"document.title = 'broken'\"> & "
    "[bold]not markup[/bold] a\u2028b\u2029c \u202e \U0001f600"
)
NUM_TRAIN = NUM_TEST = 60


def make_config(root: Path, *overrides: str) -> IRPOConfig:
    """Two iterations on the user's own problems, which stand in `root`."""
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        rows = (
            {"id": f"{split}/{n}", "question": f"What is {n} plus {n}? {NASTY}", "answer": str(2 * n)}
            for n in range(count)
        )
        write_text(root / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    paths = [f"task.{split}_path={root}/{split}.jsonl" for split in ("train", "test")]
    settings = [f"run_root={root}", "name=made", "num_iterations=1", "model.path=/models/none", "task.grader=numeric"]
    return load_config("jsonl", [*settings, *paths, *overrides])


def make_run(config: IRPOConfig) -> RunFolder:
    """Write M_0, its pairs and training, and M_1's evaluation.

    Problem n is solved by none of M_0's samples, or by n mod 4 of 4; M_1 solves one more. Greedy answers are right
    where n < 20 for M_0, and where 10 <= n < 50 for M_1.
    """
    folder = RunFolder(config.run_folder)
    write_text(folder.config, dump_config(config))
    for t, greedy_right in ((0, range(20)), (1, range(10, 50))):
        iteration = folder.iteration(t)
        grades = _write_split(iteration, "test", t, NUM_TEST, greedy_right)
        write_json(iteration.evaluation, evaluate(grades).to_json())
        if t == 0:
            _write_split(iteration, "train", t, NUM_TRAIN, None)
            _write_pairs_and_training(iteration)
        counts = {"completions": 240, "spared": 60 if t == 0 else 0}
        write_stage(iteration, "sample", {"tokens": 123, "splits": {"train": counts} if t == 0 else {}})
        write_stage(iteration, "grade", {"verdicts": {"test": {}, "train": {"sample": {"correct": 1, "wrong": 3}}}})
    return folder


def write_stage(
    folder: IterationFolder | ModelZeroFolder, stage: str, counts: dict[str, Any], **seconds: float
) -> None:
    manifest = Manifest(
        stage=stage,
        iteration=0,
        settings={},
        inputs={},
        outputs={},
        counts={**counts, "devices": {"cpu": 3, "gpu": 0}},
        seconds={**seconds, "total": 2.0},
    )
    write_manifest(folder.manifest(stage), manifest)


def _write_split(
    folder: IterationFolder, split: str, t: int, count: int, greedy_right: range | None
) -> list[GradedCandidate]:
    candidates, grades = [], []
    for n in range(count):
        kinds = [("sample", index, index < n % 4 + t) for index in range(4)]
        if greedy_right is not None:
            kinds.insert(0, ("greedy", 0, n in greedy_right))
        for kind, index, is_right in kinds:
            candidate, grade = _make_candidate(f"{split}/{n}", kind, index, n, is_right, t)
            candidates.append(candidate)
            grades.append(grade)
    for part, start in enumerate(range(0, len(candidates), 100)):
        write_records(part_path(folder.samples(split), part), candidates[start : start + 100], Candidate)
        write_records(part_path(folder.graded(split), part), grades[start : start + 100], GradedCandidate)
    return grades


def _make_candidate(
    problem_id: str, kind: Any, index: int, n: int, is_right: bool, t: int
) -> tuple[Candidate, GradedCandidate]:
    identity: dict[str, Any] = {"problem_id": problem_id, "kind": kind, "index": index}
    identity["candidate_id"] = f"{problem_id}/{kind}/{index}"
    is_cut = n == 7 and index == 3
    answer = None if is_cut else str(2 * n if is_right else 2 * n + 1 + index)
    text = f"Model {t} adds word{n} and thinks: {NASTY}\nFinal answer: {answer}"
    candidate = Candidate(
        **identity,
        prompt_token_ids=[1],
        token_ids=[2] * (3 + index),
        text=text,
        finish_reason="length" if is_cut else "stop",
        model_hash="m",
    )
    grade = GradedCandidate(
        **identity,
        gold_answer=str(2 * n),
        answer=answer,
        verdict="unparsable" if is_cut else "correct" if is_right else "wrong",
        layer="made_rule",
        answer_class=None if is_cut or kind != "sample" else (0 if is_right else index),
    )
    return candidate, grade


def _write_pairs_and_training(folder: IterationFolder) -> None:
    solved = [n for n in range(NUM_TRAIN) if n % 4]
    tokens: dict[str, Any] = {"prompt_token_ids": [1], "chosen_token_ids": [2], "rejected_token_ids": [3]}
    pairs = [
        PreferencePair(
            pair_id=f"train/{n}/{k}",
            problem_id=f"train/{n}",
            chosen_id=f"train/{n}/sample/0",
            rejected_id=f"train/{n}/sample/3",
            **tokens,
        )
        for n in solved
        for k in range(2)
    ]
    write_records(folder.pairs, pairs, PreferencePair)
    counts = {
        "num_pairs": len(pairs),
        "num_problems": NUM_TRAIN,
        "num_problems_with_pairs": len(solved),
        "num_problems_without_pairs": {"no_winner": NUM_TRAIN - len(solved)},
        "winners_per_problem": {"0": 15, "1": 15, "2": 15, "3": 15},
        "losers_per_problem": {"1": 15, "2": 15, "3": 15, "4": 15},
    }
    write_json(folder.pairs_summary, counts)
    write_stage(folder, "pair", counts)
    write_stage(folder, "train", {"steps": 2, "examples": 7}, reference=0.5, train=1.0, export=0.25)
    steps = [{"step": step, "loss/total": 2.0 - step, "loss/dpo": 0.7, "loss/nll": 1.3 - step} for step in range(2)]
    curves = {"logprob/chosen": -3.0, "logprob/rejected": -4.0, "mfu": None}
    speed = {"tokens_per_second": 300.0, "pairs_per_second": 10.0}
    write_text(folder.train.metrics, "".join(json.dumps({**step, **curves, **speed}) + "\n" for step in steps))
