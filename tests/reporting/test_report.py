"""The report of a run whose files are made by hand."""

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.artifacts import Manifest, part_path, write_json, write_manifest, write_records, write_text
from irpo_nemo.config_files import dump_config, load_config
from irpo_nemo.metrics import evaluate
from irpo_nemo.records import Candidate, GradedCandidate
from irpo_nemo.reporting.results import collect_results, read_results
from irpo_nemo.reporting.table import make_rows, print_results
from irpo_nemo.reporting.write import write_report
from irpo_nemo.run_folder import RunFolder

NASTY = '<script>alert("x")</script> & [bold]not markup[/bold]'


def write_stage(folder: Any, stage: str, counts: dict[str, Any], **seconds: float) -> None:
    manifest = Manifest(
        stage=stage, iteration=0, settings={}, inputs={}, outputs={}, counts=counts, seconds={**seconds, "total": 2.0}
    )
    write_manifest(folder.manifest(stage), manifest)


def make_test_grades(num_correct: int) -> tuple[list[Candidate], list[GradedCandidate]]:
    """Ten problems, each with a greedy completion and four samples; the first `num_correct` are all right."""
    candidates, grades = [], []
    for number in range(10):
        for kind, index in [("greedy", 0), *(("sample", index) for index in range(4))]:
            identity = {"problem_id": f"p{number}", "kind": kind, "index": index}
            identity["candidate_id"] = f"p{number}/{kind}/{index}"
            tokens = {
                "prompt_token_ids": [1],
                "token_ids": [2],
                "text": NASTY,
                "finish_reason": "stop",
                "model_hash": "m",
            }
            candidates.append(Candidate(**identity, **tokens))  # type: ignore[arg-type]
            verdict = "correct" if number < num_correct else "wrong"
            graded = {"gold_answer": "1", "answer": NASTY, "verdict": verdict, "layer": "x", "answer_class": 0}
            grades.append(GradedCandidate(**identity, **graded))  # type: ignore[arg-type]
    return candidates, grades


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """One finished iteration and the evaluation of M_1."""
    config = load_config("quickstart", [f"run_root={tmp_path}", "num_iterations=1"])
    folder = RunFolder(config.run_folder)
    write_text(folder.config, dump_config(config))
    for index, num_correct in ((0, 3), (1, 6)):
        iteration = folder.iteration(index)
        candidates, grades = make_test_grades(num_correct)
        write_records(part_path(iteration.samples("test"), 0), candidates, Candidate)
        write_records(part_path(iteration.graded("test"), 0), grades, GradedCandidate)
        write_json(iteration.evaluation, evaluate(grades).to_json())
        splits = {"train": {"completions": 30, "spared": 10}} if index == 0 else {}
        write_stage(iteration, "sample", {"tokens": 123, "splits": splits}, load=1.0)
        verdicts: dict[str, Any] = {"test": {}}
        if index == 0:
            verdicts["train"] = {"sample": {"correct": 1, "wrong": 3}}
        write_stage(iteration, "grade", {"verdicts": verdicts})
    first = folder.iteration(0)
    pairs = {
        "num_pairs": 7,
        "num_problems": 4,
        "num_problems_with_pairs": 3,
        "num_problems_without_pairs": {"no_loser": 1},
    }
    write_json(first.pairs_summary, pairs)
    write_stage(first, "pair", pairs)
    write_stage(first, "train", {"steps": 2, "examples": 7}, reference=0.5, train=1.0, export=0.25)
    first.train.root.mkdir()
    steps = [{"step": step, "loss/total": 2.0 - step, "loss/dpo": 0.7, "loss/nll": 1.3 - step} for step in range(2)]
    curves = {"logprob/chosen": -3.0, "logprob/rejected": -4.0, "mfu": None}
    first.train.metrics.write_text("".join(json.dumps({**step, **curves}) + "\n" for step in steps))
    return folder


def test_results_have_the_keys_that_others_rely_on(run: RunFolder) -> None:
    write_report(run)
    results = read_results(run)
    assert (results["run"], results["task"]) == ("quickstart", "arithmetic")
    first, last = results["iterations"]
    assert first["iteration"] == 0
    assert first["accuracy"] == pytest.approx(0.3)
    low, high = first["accuracy_ci95"]
    assert 0 < low < 0.3 < high < 1
    assert (first["majority_vote"]["k"], first["majority_vote"]["accuracy"]) == (4, pytest.approx(0.3))
    assert first["pass_at_k"] == {"1": pytest.approx(0.3), "4": pytest.approx(0.3)}
    assert first["sample_accuracy"] == pytest.approx(0.3)
    assert first["train_sample_accuracy"] == pytest.approx(0.25)
    assert first["num_pairs"] == 7
    assert first["loss"]["loss/total"] == {"first": 2.0, "last": 1.0}
    assert first["seconds"] == {
        "sample": 2.0, "grade": 2.0, "pair": 2.0, "reference": 0.5, "train": 1.0, "export": 0.25, "train_stage": 2.0
    }  # fmt: skip
    assert first["tokens"] == {"sampled": 123}
    assert (first["candidates"], last["candidates"]) == ({"drawn": 30, "possible": 40}, None)
    assert "<p>Rounds drew 30 of 40 candidates, which spared 25.0%.</p>" in run.page.read_text()
    assert last["accuracy"] == pytest.approx(0.6)
    assert (last["num_pairs"], last["loss"], last["train_sample_accuracy"]) == (None, None, None)


def test_a_run_under_way_is_reported_as_far_as_it_is(run: RunFolder) -> None:
    run.iteration(1).manifest("grade").unlink()
    run.iteration(0).manifest("train").unlink()
    (entry,) = collect_results(run)["iterations"]
    assert entry["num_pairs"] == 7
    assert entry["loss"] is None


def test_a_run_that_has_only_started_gives_a_page(tmp_path: Path) -> None:
    config = load_config("quickstart", [f"run_root={tmp_path}"])
    folder = RunFolder(config.run_folder)
    write_text(folder.config, dump_config(config))
    write_report(folder)
    assert "No model has been evaluated yet." in folder.page.read_text()
    print_results(read_results(folder))


def test_the_table_shows_every_model(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    results = collect_results(run)
    assert make_rows(results)[0] == (
        "M_0", "30.0%", "10.8% to 60.3%", "30.0% of 4", "30.0%", "7", "2.000 to 1.000"
    )  # fmt: skip
    print_results(results)
    assert "M_1" in capsys.readouterr().out


@pytest.mark.parametrize("num_correct", [0, 10])
def test_accuracies_of_0_and_1_are_plotted(run: RunFolder, num_correct: int) -> None:
    _, grades = make_test_grades(num_correct)
    write_json(run.iteration(1).evaluation, evaluate(grades).to_json())
    write_report(run)


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_stands_alone_and_runs_nothing(run: RunFolder) -> None:
    write_report(run)
    page = _Page()
    page.feed(run.page.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3
    assert all(link.startswith("#") for link in page.links)


def test_text_of_models_is_escaped(run: RunFolder) -> None:
    write_report(run)
    page = run.page.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; [bold]" in page


def test_the_same_run_gives_the_same_page(run: RunFolder) -> None:
    write_report(run)
    first = run.page.read_bytes()
    write_report(run)
    assert run.page.read_bytes() == first
