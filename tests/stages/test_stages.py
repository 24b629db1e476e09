"""The light stages on hand-made candidates, and what all stages share."""

import dataclasses
import json
from pathlib import Path

import pytest

from irpo_nemo.artifacts import list_parts, part_path, read_json, read_manifest, read_parts, read_records, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import load_config
from irpo_nemo.errors import ArtifactError, ConfigError, DataError, MachineError
from irpo_nemo.grading import GRADERS
from irpo_nemo.pipeline import find_step
from irpo_nemo.records import Candidate, CandidateKind, GradedCandidate, PreferencePair, Problem
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.stages.frame import run_stage
from tests.test_pipeline import finish_until

QUESTIONS = {"train-0": "4", "train-1": "5", "train-2": "6"}


@pytest.fixture
def config(tmp_path: Path) -> IRPOConfig:
    """A run on three problems of one's own whose iteration 0 waits for its candidates to be graded."""
    model = tmp_path / "model"
    model.mkdir()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    (model / "config.json").write_text(json.dumps(sizes))
    lines = [json.dumps({"question": f"Number {answer}?", "answer": answer}) for answer in QUESTIONS.values()]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    files = [f"task.{split}_path={tmp_path}/problems.jsonl" for split in ("train", "test")]
    overrides = [f"run_root={tmp_path}", "task.name=jsonl", f"model.path={model}", "sft.enabled=false", *files]
    loaded = load_config("quickstart", [*overrides, "evaluation.num_samples=0", "num_iterations=1"])
    write_samples(loaded)
    finish_until(loaded, "iteration 0 grade")
    return loaded


def write_samples(config: IRPOConfig) -> None:
    """Two parts of training candidates, one of evaluation candidates. Problem 0 has both verdicts, 1 none correct."""
    iteration = RunFolder(config.run_folder).iteration(0)
    answers = {"train-0": ["4", "9", "4"], "train-1": ["1", "2", "what?"], "train-2": ["6", "6", "6"]}
    rows = {
        name: [make_candidate(name, index, answer) for index, answer in enumerate(texts)]
        for name, texts in answers.items()
    }
    train, test = iteration.samples("train"), iteration.samples("test")
    write_records(part_path(train, 0), rows["train-0"] + rows["train-1"], Candidate)
    write_records(part_path(train, 1), rows["train-2"], Candidate)
    greedy = [make_candidate(f"test-{n}", 0, answer, kind="greedy") for n, answer in enumerate(["4", "0", "6"])]
    write_records(part_path(test, 0), greedy, Candidate)


def make_candidate(problem_id: str, index: int, answer: str, *, kind: CandidateKind = "sample") -> Candidate:
    text = answer if answer.endswith("?") else f"It is {answer}.\nFinal answer: {answer}"
    return Candidate(
        candidate_id=f"{problem_id}/{kind}/{index}",
        problem_id=problem_id,
        kind=kind,
        index=index,
        prompt_token_ids=[1, 2],
        token_ids=[3, index, 4],
        text=text,
        finish_reason="stop",
        model_hash="m",
    )


def test_grading_writes_a_part_for_each_part_and_the_evaluation(config: IRPOConfig) -> None:
    run_stage(config, "grade", 0)
    folder = RunFolder(config.run_folder).iteration(0)
    assert [path.name for path in list_parts(folder.graded("train"))] == ["part-00000.parquet", "part-00001.parquet"]
    grades = read_records(part_path(folder.graded("train"), 0), GradedCandidate)
    assert [(grade.answer, grade.verdict) for grade in grades[:3]] == [
        ("4", "correct"),
        ("9", "wrong"),
        ("4", "correct"),
    ]
    assert grades[5].verdict == "unparsable"
    assert read_json(folder.evaluation)["accuracy"] == pytest.approx(2 / 3)
    manifest = read_manifest(folder.manifest("grade"))
    assert manifest is not None
    assert manifest.counts["verdicts"] == {
        "train": {"sample": {"correct": 5, "unparsable": 1, "wrong": 3}},
        "test": {"greedy": {"correct": 2, "wrong": 1}},
    }


def test_what_the_sampler_could_not_draw_is_no_answer(config: IRPOConfig) -> None:
    folder = RunFolder(config.run_folder).iteration(0)
    failed = dataclasses.replace(make_candidate("train-2", 3, ""), finish_reason="failed", token_ids=[], text="")
    write_records(part_path(folder.samples("train"), 2), [failed], Candidate)
    run_stage(config, "grade", 0)
    (grade,) = read_records(part_path(folder.graded("train"), 2), GradedCandidate)
    assert (grade.answer, grade.verdict, grade.layer) == (None, "error", "sampler")


def test_evaluation_samples_vote_by_meaning(config: IRPOConfig) -> None:
    """Of 5, 9/2, 4.50 and 4 the two spellings of four and a half are one class; training samples have none."""
    folder = RunFolder(config.run_folder).iteration(0)
    texts = ["5", "4.5", "what?", "4.50", "4"]
    rows = []
    for number in range(3):
        rows.append(make_candidate(f"test-{number}", 0, "4", kind="greedy"))
        rows += [make_candidate(f"test-{number}", index, text) for index, text in enumerate(texts)]
    write_records(part_path(folder.samples("test"), 0), rows, Candidate)
    run_stage(config, "grade", 0)
    grades = read_records(part_path(folder.graded("test"), 0), GradedCandidate)
    assert [grade.answer_class for grade in grades[:6]] == [None, 0, 1, None, 1, 4]
    majority = read_json(folder.evaluation)["majority_vote"]
    assert (majority["k"], majority["accuracy"]) == (5, 0.0)
    assert {grade.answer_class for grade in read_parts(folder.graded("train"), GradedCandidate)} == {None}


def test_what_the_auditor_judges_differently_joins_neither_side_and_is_written_down(config: IRPOConfig) -> None:
    """4 as a mixed fraction is right, but the auditor reads its first number."""
    config.grading.audit = True
    folder = RunFolder(config.run_folder).iteration(0)
    answers = ["4", "3 2/2", "9", "what?"]
    rows = [make_candidate("train-0", index, answer) for index, answer in enumerate(answers)]
    write_records(part_path(folder.samples("train"), 0), rows, Candidate)
    run_stage(config, "grade", 0)
    grades = read_records(part_path(folder.graded("train"), 0), GradedCandidate)
    assert [grade.verdict for grade in grades] == ["correct", "correct", "wrong", "unparsable"]
    assert [grade.audit_verdict for grade in grades] == ["correct", "wrong", "wrong", "unparsable"]
    (line,) = folder.disagreements.read_text().splitlines()
    assert json.loads(line) == {**dataclasses.asdict(grades[1]), "text": rows[1].text}
    manifest = read_manifest(folder.manifest("grade"))
    assert manifest is not None
    assert manifest.counts["disputed"] == 1
    run_stage(config, "pair", 0)
    assert read_json(folder.pairs_summary)["num_disputed"] == 1
    assert {pair.chosen_id for pair in read_records(folder.pairs, PreferencePair)} == {"train-0/sample/0"}


def test_a_broken_grader_stops_the_stage_before_it_grades(config: IRPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_case = (Problem(problem_id="", question="", gold_answer="50%"), "50", "unparsable")
    monkeypatch.setattr(GRADERS["numeric"], "golden_cases", lambda: [wrong_case], raising=False)
    with pytest.raises(MachineError, match=r"^self-test of the numeric grader failed: '50' with the gold answer '50%'"):
        run_stage(config, "grade", 0)
    assert not RunFolder(config.run_folder).iteration(0).graded("train").exists()


def test_workers_change_no_verdict_and_nothing_is_stale_for_them(config: IRPOConfig) -> None:
    run_stage(config, "grade", 0)
    config.grading.num_workers = 1
    assert find_step(config, "grade", 0).state == "done"
    config.grading.deadline_seconds = 1.0
    assert find_step(config, "grade", 0).reason == "grading.deadline_seconds was 2.0, is 1.0"


def test_pairs_come_from_problems_with_both_verdicts(config: IRPOConfig) -> None:
    run_stage(config, "grade", 0)
    run_stage(config, "pair", 0)
    folder = RunFolder(config.run_folder).iteration(0)
    pairs = read_records(folder.pairs, PreferencePair)
    assert len(pairs) == config.pairing.num_pairs_per_problem
    assert {pair.problem_id for pair in pairs} == {"train-0"}
    assert [pair.chosen_id for pair in pairs[:3]] == ["train-0/sample/0", "train-0/sample/2", "train-0/sample/0"]
    summary = read_json(folder.pairs_summary)
    assert summary["num_problems_without_pairs"] == {"no_loser": 1, "no_winner": 1}


def test_pairs_of_another_run_are_taken_as_they_are(config: IRPOConfig, tmp_path: Path) -> None:
    run_stage(config, "grade", 0)
    run_stage(config, "pair", 0)
    made = RunFolder(config.run_folder).iteration(0).pairs
    pairs = read_records(made, PreferencePair)
    config.name, config.pairing.pairs_path = "other", str(made)
    model = tmp_path / "model" / "config.json"
    shape = {**json.loads(model.read_text()), "model_type": "llama", "vocab_size": 3}
    model.write_text(json.dumps(shape))
    with pytest.raises(DataError, match=r"pairs.parquet: holds token 4, but the model's vocabulary has 3\. Name the"):
        run_stage(config, "pair", 0)
    model.write_text(json.dumps({**shape, "vocab_size": 5}))
    run_stage(config, "pair", 0)
    assert read_records(RunFolder(config.run_folder).iteration(0).pairs, PreferencePair) == pairs


def test_grading_goes_on_after_the_parts_that_are_there(config: IRPOConfig) -> None:
    run_stage(config, "grade", 0)
    step = find_step(config, "grade", 0)
    before = read_manifest(step.manifest)
    graded = RunFolder(config.run_folder).iteration(0).graded("train")
    kept, lost = list_parts(graded)
    written = kept.stat().st_mtime_ns
    step.manifest.unlink()
    lost.unlink()
    (graded / ".part-00001.parquet.99.tmp").write_text("half a part")
    run_stage(config, "grade", 0)
    after = read_manifest(step.manifest)
    assert before is not None
    assert after is not None
    assert after.outputs == before.outputs
    assert kept.stat().st_mtime_ns == written
    assert sorted(path.name for path in graded.iterdir()) == ["part-00000.parquet", "part-00001.parquet"]


def test_leftovers_of_another_start_are_cleared(config: IRPOConfig) -> None:
    step = find_step(config, "grade", 0)
    graded = RunFolder(config.run_folder).iteration(0).graded("train")
    grades = [
        GradedCandidate(
            candidate_id="old",
            problem_id="old",
            kind="sample",
            index=0,
            gold_answer="",
            answer="",
            verdict="wrong",
            layer="",
        )
    ]
    write_records(part_path(graded, 0), grades, GradedCandidate)
    step.ticket.write_text(json.dumps({"settings": {"seed": 7}, "inputs": {}}))
    run_stage(config, "grade", 0)
    assert "old" not in {grade.candidate_id for grade in read_parts(graded, GradedCandidate)}


def test_a_finished_stage_is_left_alone(config: IRPOConfig) -> None:
    run_stage(config, "grade", 0)
    written = find_step(config, "grade", 0).manifest.stat().st_mtime_ns
    run_stage(config, "grade", 0)
    assert find_step(config, "grade", 0).manifest.stat().st_mtime_ns == written


def test_a_stage_out_of_turn_is_refused(config: IRPOConfig) -> None:
    with pytest.raises(ArtifactError, match="iteration 0 train comes after iteration 0 pair, which is not done"):
        run_stage(config, "train", 0)


def test_a_stage_that_the_run_has_not_is_refused(config: IRPOConfig) -> None:
    with pytest.raises(ConfigError, match="sft: this run has no such step"):
        run_stage(config, "sft", None)


def test_candidates_of_other_problems_are_refused(config: IRPOConfig) -> None:
    foreign = RunFolder(config.run_folder).iteration(0).samples("train")
    write_records(part_path(foreign, 2), [make_candidate("elsewhere", 0, "1")], Candidate)
    with pytest.raises(ArtifactError, match=r"^elsewhere/sample/0: is no candidate of this task's problems\. Delete"):
        run_stage(config, "grade", 0)
