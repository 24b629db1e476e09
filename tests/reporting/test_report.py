"""results.json, the tables and the page of a run whose files are made by hand."""

import base64
import dataclasses
import html.parser
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.artifacts import read_manifest, write_json, write_manifest, write_text
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import dump_config
from irpo_nemo.errors import ConfigError
from irpo_nemo.reporting.results import collect_results, read_results
from irpo_nemo.reporting.show import show_problem
from irpo_nemo.reporting.table import make_rows, print_results
from irpo_nemo.reporting.write import compare_runs, write_report
from irpo_nemo.run_folder import RunFolder
from tests.reporting.made_run import NASTY, make_config, make_run, write_stage


@pytest.fixture
def config(tmp_path: Path) -> IRPOConfig:
    return make_config(tmp_path)


@pytest.fixture
def run(config: IRPOConfig) -> RunFolder:
    return make_run(config)


def read_script(path: Path) -> Any:
    """What a file of report/data holds."""
    name, data = json.loads(path.read_text().replace("irpo.add(", "[").replace(")\n", "]"))
    assert name == path.stem
    return json.loads(zlib.decompress(base64.b64decode(data)))


def test_results_have_the_keys_that_others_rely_on(run: RunFolder, config: IRPOConfig) -> None:
    write_report(run, config)
    results = read_results(run)
    assert (results["run"], results["task"]) == ("made", "jsonl")
    first, last = results["iterations"]
    assert first["iteration"] == 0
    assert first["accuracy"] == pytest.approx(20 / 60)
    low, high = first["accuracy_ci95"]
    assert 0 < low < 20 / 60 < high < 1
    assert first["majority_vote"]["k"] == 4
    assert first["majority_vote"]["accuracy_ci95"][0] < first["majority_vote"]["accuracy"]
    assert first["pass_at_k"] == {"1": pytest.approx(0.375), "4": pytest.approx(0.75)}
    assert first["sample_accuracy"] == pytest.approx(0.375)
    assert first["train_sample_accuracy"] == pytest.approx(0.25)
    assert first["num_pairs"] == 90
    assert first["loss"]["loss/total"] == {"first": 2.0, "last": 1.0}
    assert first["candidates"] == {"drawn": 240, "possible": 300}
    assert first["seconds"] == {
        "sample": 2.0, "grade": 2.0, "pair": 2.0, "reference": 0.5, "train": 1.0, "export": 0.25, "train_stage": 2.0
    }  # fmt: skip
    assert last["accuracy"] == pytest.approx(40 / 60)
    assert (last["num_pairs"], last["loss"], last["candidates"]) == (None, None, None)


def test_results_count_completions_their_tokens_and_what_was_cut_off(run: RunFolder, config: IRPOConfig) -> None:
    completions = collect_results(run, config)["iterations"][0]["completions"]
    samples = completions["train"]["sample"]
    assert (samples["count"], samples["truncated"], samples["failed"]) == (240, 1, 0)
    assert samples["tokens"] == {"mean": 4.5, "p50": 4, "p95": 6, "max": 6}
    assert {verdict: of["count"] for verdict, of in samples["by_verdict"].items()} == {
        "correct": 90, "unparsable": 1, "wrong": 149
    }  # fmt: skip
    assert samples["by_verdict"]["correct"]["tokens"] == {"mean": pytest.approx(11 / 3), "p50": 3, "p95": 5, "max": 5}
    assert samples["by_verdict"]["unparsable"]["truncated"] == 1
    assert completions["test"]["greedy"]["count"] == 60
    assert collect_results(run, config)["iterations"][1]["completions"]["train"] == {}


def test_tokens_and_device_time_are_those_of_this_run(run: RunFolder, config: IRPOConfig) -> None:
    first = collect_results(run, config)["iterations"][0]
    assert first["tokens"] == {"sampled": 123, "trained": 2 * 30 * config.training.global_batch_size}
    assert first["cost"]["seconds"]["train"] == {"cpu": 6.0, "gpu": 0.0}
    path = run.iteration(0).manifest("sample")
    manifest = read_manifest(path)
    assert manifest is not None
    drawn_in_shards = manifest.counts | {"seconds_elsewhere": {"wall": 25.0, "cpu": 50.0}}
    write_manifest(path, dataclasses.replace(manifest, counts=drawn_in_shards))
    again = collect_results(run, config)["iterations"][0]
    assert again["seconds"]["sample"] == first["seconds"]["sample"] + 25.0
    assert again["cost"]["seconds"]["sample"] == {"cpu": first["cost"]["seconds"]["sample"]["cpu"] + 50.0, "gpu": 0.0}
    write_manifest(path, dataclasses.replace(manifest, taken_from="runs/other"))
    write_report(run, config)
    first = read_results(run)["iterations"][0]
    assert first["taken_from"] == {"sample": "runs/other"}
    assert sorted(first["cost"]["seconds"]) == ["grade", "pair", "train"]
    assert "M_0 sample: taken over from runs/other" in run.page.read_text()


def test_what_model_zero_took_is_told_apart(run: RunFolder, config: IRPOConfig) -> None:
    write_report(run, config)
    assert "of fine-tuning" not in run.page.read_text()
    write_stage(run.model_zero, "sft", {"examples": 64, "steps": 2000})
    write_report(run, config)
    assert "Before the iterations, M_0: 2,000 steps of fine-tuning, 2 s." in run.page.read_text()


def test_the_choice_of_the_step_is_drawn_and_its_stages_cost(run: RunFolder, config: IRPOConfig) -> None:
    iteration = run.iteration(0)
    tried = [{"step": 10 * n, "accuracy": n / 10, "accuracy_ci95": [0.0, 0.9], "validation_loss": 1.0} for n in (1, 5)]
    write_json(iteration.selection, {"chosen_step": 50, "trial_steps": 50, "num_problems": 8, "tried": tried})
    for stage in ("trial", "select"):
        write_stage(iteration, stage, {})
    write_report(run, config)
    assert "Choice of the step: M_0 → M_1 10% to 50%" in run.page.read_text()
    cost = read_results(run)["iterations"][0]["cost"]["seconds"]
    assert (cost["trial"], cost["select"]) == ({"cpu": 6.0, "gpu": 0.0}, {"cpu": 6.0, "gpu": 0.0})


def test_a_run_under_way_is_reported_as_far_as_it_is(run: RunFolder, config: IRPOConfig) -> None:
    run.iteration(1).manifest("grade").unlink()
    run.iteration(0).manifest("train").unlink()
    write_report(run, config)
    (entry,) = read_results(run)["iterations"]
    assert entry["num_pairs"] == 90
    assert entry["loss"] is None
    assert read_script(run.page_data / "test.js")["models"] == [0]


def test_a_run_that_has_only_started_gives_a_page(config: IRPOConfig) -> None:
    folder = RunFolder(config.run_folder)
    write_text(folder.config, dump_config(config))
    write_report(folder, config)
    assert "No model has been evaluated yet." in folder.page.read_text()
    print_results(read_results(folder))


def test_the_table_shows_every_model(run: RunFolder, config: IRPOConfig, capsys: pytest.CaptureFixture[str]) -> None:
    results = collect_results(run, config)
    assert make_rows(results)[0] == (
        "M_0", "33.3%", "22.7% to 45.9%", "75.0% of 4", "37.5%", "90", "2.000 to 1.000"
    )  # fmt: skip
    print_results(results)
    assert "M_1" in capsys.readouterr().out


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_accuracies_of_0_and_1_are_drawn(run: RunFolder, config: IRPOConfig, accuracy: float) -> None:
    path = run.iteration(1).evaluation
    evaluation = json.loads(path.read_text())
    write_json(path, {**evaluation, "accuracy": accuracy, "accuracy_ci95": [accuracy, accuracy]})
    write_report(run, config)
    assert f"greedy, 95% interval: {100 * accuracy:.3g}%" in run.page.read_text()


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]


def test_the_page_stands_alone_with_its_own_script_only(run: RunFolder, config: IRPOConfig) -> None:
    write_report(run, config)
    page = _Page()
    page.feed(run.page.read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert page.tags.count("svg") > 10
    assert all(link.startswith("#") for link in page.links)


def test_names_are_escaped_in_the_page(config: IRPOConfig, run: RunFolder) -> None:
    config.name = "<b>bold"
    config.sampler.server.model = NASTY
    shutil.copytree(run.root, config.run_folder)
    write_report(RunFolder(config.run_folder), config)
    text = RunFolder(config.run_folder).page.read_text(encoding="utf-8")
    assert "<b>bold" not in text
    assert "<script>document" not in text
    assert "&lt;script&gt;document" in text


def test_data_files_hold_ascii_that_ends_no_script(run: RunFolder, config: IRPOConfig) -> None:
    write_report(run, config)
    files = sorted(run.page_data.iterdir())
    assert [path.name for path in files] == [
        f"{split}{rest}.js" for split in ("test", "train") for rest in ("-0000", "-words-0000", "")
    ]
    assert not any("<" in path.read_text(encoding="ascii") for path in files)


def test_problems_stand_in_the_data_with_candidates_and_pairs(run: RunFolder, config: IRPOConfig) -> None:
    write_report(run, config)
    problem = read_script(run.page_data / "train-0000.js")[7]
    assert (problem["id"], problem["gold"], list(problem["models"])) == ("train/7", "14", ["0"])
    assert problem["question"] == f"What is 7 plus 7? {NASTY}"
    assert problem["models"]["0"]["pairs"] == [["sample/0", "sample/3"]] * 2
    assert problem["models"]["0"]["candidates"][3][:8] == [
        "sample", 3, "unparsable", "made_rule", None, None, "length", 6
    ]  # fmt: skip
    index = read_script(run.page_data / "train.js")
    assert index["prompt_before"] + problem["prompt"] + index["prompt_after"] == (
        "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're "
        f'ready to answer, please use the format "Final answer: ..."\nQuestion: {problem["question"]}\nSolution:'
    )


def test_the_list_has_questions_on_one_line_and_shows_where_they_are_cut(
    run: RunFolder, config: IRPOConfig, tmp_path: Path
) -> None:
    questions = ["How\n  many?", "x" * 110, "x" * 111, f"{'x' * 108} {'y' * 50}"]
    rows = [{"id": f"train/{n}", "question": question, "answer": str(2 * n)} for n, question in enumerate(questions)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(run, config)
    heads = read_script(run.page_data / "train.js")["heads"]
    assert heads[:5] == ["How many?", "x" * 110, f"{'x' * 109}…", f"{'x' * 108}…", ""]


def test_a_page_of_a_run_without_its_problem_files_has_no_questions(
    run: RunFolder, config: IRPOConfig, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").unlink()
    write_report(run, config)
    assert read_script(run.page_data / "train-0000.js")[7]["question"] is None


def test_the_same_run_gives_the_same_report(run: RunFolder, config: IRPOConfig) -> None:
    def read_all() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.report.rglob("*") if path.is_file()}

    write_report(run, config)
    first = read_all()
    write_report(run, config)
    assert read_all() == first


@pytest.mark.usefixtures("run")
def test_runs_are_compared_in_a_table_and_on_a_page(
    config: IRPOConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_config(tmp_path, "name=other", "loss.beta=0.5")
    make_run(other)
    compare_runs([config, other], tmp_path / "both.html")
    printed = capsys.readouterr().out
    assert printed.count("33.3%") == 2
    page = (tmp_path / "both.html").read_text()
    assert '<th scope="row">loss.beta</th><td>0.1</td><td>0.5</td>' in page
    assert "num_iterations" not in page
    assert "DPO part of the loss" in page


@pytest.mark.usefixtures("run")
def test_runs_of_one_name_are_told_apart(
    config: IRPOConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_config(tmp_path, f"run_root={tmp_path}/elsewhere")
    make_run(other)
    compare_runs([config, other], tmp_path / "both.html")
    assert "elsewhere/made" in capsys.readouterr().out


@pytest.mark.usefixtures("run")
def test_a_run_without_models_cannot_be_compared(config: IRPOConfig, tmp_path: Path) -> None:
    empty = make_config(tmp_path, "name=empty")
    write_text(RunFolder(empty.run_folder).config, dump_config(empty))
    with pytest.raises(ConfigError, match="empty: has evaluated no model yet, so there is nothing to compare"):
        compare_runs([config, empty], tmp_path / "both.html")


@pytest.mark.usefixtures("run")
def test_a_problem_is_shown_on_the_terminal(config: IRPOConfig, capsys: pytest.CaptureFixture[str]) -> None:
    show_problem(config, "test/30")
    printed = capsys.readouterr().out
    assert "Question: What is 30 plus 30? <script>" in printed
    assert "gold answer: 60" in printed
    assert "[bold]not markup[/bold]" in printed
    assert "greedy 0  wrong 61 (rule made_rule, 3 tokens)" in printed
    assert "greedy 0  correct 60" in printed
    assert printed.count("Model 1 adds word30") == 5


@pytest.mark.usefixtures("run")
def test_one_model_is_shown_with_its_pairs(config: IRPOConfig, capsys: pytest.CaptureFixture[str]) -> None:
    show_problem(config, "train/7", iteration=0)
    printed = capsys.readouterr().out
    assert "(rule made_rule, 6 tokens, cut off)" in printed
    assert "pair 1: sample/0 over sample/3" in printed


def test_a_problem_that_is_not_there_is_named_with_those_like_it(run: RunFolder, config: IRPOConfig) -> None:
    with pytest.raises(ConfigError) as error:
        show_problem(config, "train/77")
    assert str(error.value) == (
        f"train/77: is no graded problem of {run.root}. It has 120, such as train/7, train/57, train/47."
    )
