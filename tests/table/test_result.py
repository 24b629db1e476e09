"""The table, from results made by hand."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from irpo_nemo.artifacts import Manifest, part_path, read_json, read_records, write_manifest, write_records
from irpo_nemo.metrics import wilson_interval
from irpo_nemo.records import GradedCandidate
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.table.claims import Finding
from irpo_nemo.table.collect import read_curve
from irpo_nemo.table.command import make_plan, show
from irpo_nemo.table.result import TableResult, collect_table
from irpo_nemo.table.runs import TablePlan
from irpo_nemo.table.write import write_result

TABLE = """
source: the paper
seeds: [0, 1, 2]
runs: {irpo: [], dpo: [loss=dpo]}
rows:
  - {id: m0, title: M_0, run: irpo, iteration: 0, paper: 55.6}
  - {id: m0_vote, title: M_0, run: irpo, iteration: 0, decoding: majority}
  - {id: irpo_1, title: IRPO, run: irpo, iteration: 1, paper: 73.1}
  - {id: irpo_2, title: IRPO again, run: irpo, iteration: 2}
  - {id: dpo, title: DPO, run: dpo, iteration: 1, paper: 61.8}
  - {id: irpo_1_sample, title: IRPO, run: irpo, iteration: 1, decoding: pass@1}
comparisons:
  - {says: IRPO beats M_0, better: irpo_1, worse: m0}
  - {says: IRPO beats DPO, better: irpo_1, worse: dpo}
diminishing:
  - {says: less each time, rows: [m0, irpo_1, irpo_2]}
curves:
  - {says: chosen falls, run: dpo, side: chosen, direction: falls}
  - {says: rejected rises, run: dpo, side: rejected, direction: rises}
figures:
  - {file: curves, title: Curves, panels: {DPO: dpo, IRPO: irpo}}
"""


def finish(folder: RunFolder, stage: str, iteration: int | None, *, taken_from: str | None = None) -> None:
    manifest = Manifest(
        stage=stage,
        iteration=iteration,
        settings={},
        inputs={},
        outputs={},
        counts={},
        seconds={"total": 30.0},
        taken_from=taken_from,
    )
    place = folder.model_zero if iteration is None else folder.iteration(iteration)
    write_manifest(place.manifest(stage), manifest)


def write_accuracy(
    folder: RunFolder, iteration: int, correct: int, votes: int, *, taken_from: str | None = None
) -> None:
    """Of 100 problems, the easiest ones; and of a vote of 8 on each."""
    grades = [
        GradedCandidate(
            candidate_id=f"{problem}/{kind}/{index}",
            problem_id=str(problem),
            kind=kind,
            index=index,
            gold_answer="4",
            answer="4",
            verdict="correct" if problem < solved else "wrong",
            layer="numeric",
            answer_class=0 if kind == "sample" else None,
        )
        for problem in range(100)
        for kind, solved, count in (("greedy", correct, 1), ("sample", votes, 8))
        for index in range(count)
    ]
    write_records(part_path(folder.iteration(iteration).graded("test"), 0), grades, GradedCandidate)
    finish(folder, "grade", iteration, taken_from=taken_from)


def write_training(folder: RunFolder, *, chosen: float, rejected: float) -> None:
    """20 steps at beta 0.1; in the last two, log-probs have moved so far, give or take 0.1, from -20 and -30."""
    folder.config.parent.mkdir(parents=True, exist_ok=True)
    folder.config.write_text("loss: {beta: 0.1}\n")
    lines = []
    for step in range(20):
        share, noise = min(1, step / 18), 0.1 * (-1) ** step
        moved = {"chosen": chosen * share + noise, "rejected": rejected * share + noise}
        line = {f"reward/{side}": 0.1 * change for side, change in moved.items()}
        line |= {"logprob/chosen": -20 + moved["chosen"], "logprob/rejected": -30 + moved["rejected"]}
        lines.append(json.dumps(line) + "\n")
    metrics = folder.iteration(0).train.metrics
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text("".join(lines))
    finish(folder, "train", 0)


@pytest.fixture
def plan(tmp_path: Path) -> TablePlan:
    """Three seeds of `irpo`, whose third lacks iteration 2; two of `dpo`, which share M_0 with it."""
    path = tmp_path / "t.yaml"
    path.write_text(TABLE)
    plan = make_plan(str(path), folder=str(tmp_path / "out"), seeds=None, options=[])
    accuracies = {0: (20, 60, 70), 1: (22, 64, 72), 2: (24, 68, None)}
    for seed, (first, second, third) in accuracies.items():
        irpo = RunFolder(plan.folder_of(seed) / "irpo")
        write_accuracy(irpo, 0, first, first + 30)
        write_accuracy(irpo, 1, second, second)
        if third is not None:
            write_accuracy(irpo, 2, third, third)
    for seed, correct in ((0, 50), (1, 70)):
        dpo = RunFolder(plan.folder_of(seed) / "dpo")
        write_training(dpo, chosen=-4.0 - seed, rejected=-9.0)
        write_accuracy(dpo, 0, 20, 50, taken_from=f"{plan.folder_of(seed)}/irpo")
        write_accuracy(dpo, 1, correct, correct)
    return plan


@pytest.fixture
def result(plan: TablePlan) -> TableResult:
    return collect_table(plan, {("dpo", 2): "no pairs"})


def test_a_row_is_the_mean_over_seeds_with_students_interval(result: TableResult) -> None:
    m0 = result.rows[0]
    assert m0.mean == pytest.approx(0.22)
    assert m0.interval == pytest.approx((0.22 - 4.303 * 0.02 / 3**0.5, 0.22 + 4.303 * 0.02 / 3**0.5))
    assert [row.title for row in result.rows[:2]] == ["M_0", "M_0, maj@8"]
    assert result.rows[1].mean == pytest.approx(0.52)


def test_pass_at_1_is_the_mean_of_the_samples(plan: TablePlan) -> None:
    """The first of the 8 samples of each of the 100 problems is right as well: of 60 problems all 8 are."""
    folder = RunFolder(plan.folder_of(0) / "irpo").iteration(1)
    part = part_path(folder.graded("test"), 0)
    grades = [
        dataclasses.replace(grade, verdict="correct" if grade.kind == "sample" and grade.index == 0 else grade.verdict)
        for grade in read_records(part, GradedCandidate)
    ]
    write_records(part, grades, GradedCandidate)
    row = collect_table(plan, {}).rows[5]
    assert row.title == "IRPO, pass@1"
    made = row.measurements[0]
    assert made.accuracy == pytest.approx(0.6 + 0.4 / 8)
    deviation = 7 / 8 * (0.6 * 0.4 * 100 / 99) ** 0.5
    half = 1.959964 * deviation / 10
    assert made.interval == pytest.approx((0.65 - half, 0.65 + half))


def test_the_interval_of_one_seed_is_that_of_its_problems(plan: TablePlan) -> None:
    one = TablePlan(layout=plan.layout, folder=plan.folder, seeds=[1], options=[])
    assert collect_table(one, {}).rows[2].interval == wilson_interval(64, 100)


def test_an_interval_stays_within_0_and_1(result: TableResult) -> None:
    """0.5 and 0.7, t(1) = 12.7: beyond both ends."""
    assert result.rows[4].interval == (0.0, 1.0)


def test_missing_rows_are_named(result: TableResult) -> None:
    assert result.missing == {"IRPO again": [2], "DPO": [2]}


def test_a_claim_is_shown_when_its_interval_lies_beyond_0(result: TableResult) -> None:
    """Differences 40, 42, 44 points: 42 +- 4.303 x 2 / sqrt 3. Against DPO: 10 and -6, t(1) = 12.706."""
    over_m0, over_dpo, *_ = result.findings
    assert over_m0 == Finding(
        says="IRPO beats M_0",
        verdict="shown",
        numbers="+42.0 points (95% interval +37.0 to +47.0); by seed +40.0, +42.0, +44.0; "
        "beyond its own interval in 3 of 3",
    )
    assert over_dpo == Finding(
        says="IRPO beats DPO",
        verdict="not shown",
        numbers="+2.0 points (95% interval -99.6 to +103.6); by seed +10.0, -6.0; beyond its own interval in 1 of 2",
    )


@pytest.mark.parametrize(
    ("worse", "verdict"),
    [((20, 22, 24), "shown"), ((5, 30, 50), "shown in every seed"), ((5, 30, 67), "not shown")],
)
def test_seeds_that_agree_in_direction_alone_say_so(plan: TablePlan, worse: Sequence[int], verdict: str) -> None:
    """Student's interval of 55, 34 and 18 points reaches below 0, each seed's own does not; of 1 point it does."""
    for seed, correct in enumerate(worse):
        write_accuracy(RunFolder(plan.folder_of(seed) / "irpo"), 0, correct, 90)
    assert collect_table(plan, {}).findings[0].verdict == verdict


def test_gains_are_compared_over_the_seeds_that_have_all_of_them(result: TableResult) -> None:
    assert result.findings[2] == Finding(
        says="less each time", verdict="shown", numbers="gains +41.0, +9.0 points, means of 2 seeds"
    )


def test_curves_are_judged_by_what_training_moved(result: TableResult) -> None:
    """The last tenth moved chosen by -4 and -5 (t(1) = 12.706, but each seed's two steps agree), rejected by -9."""
    falls, rises = result.findings[3:]
    assert falls == Finding(
        says="chosen falls",
        verdict="shown in every seed",
        numbers="-4.50 nats a completion (95% interval -10.85 to +1.85); by seed -4.00, -5.00; "
        "beyond its own interval in 2 of 2",
    )
    assert rises.verdict == "not shown"
    assert rises.numbers.startswith("-9.00 nats")
    (first, _) = result.curves["dpo"]["chosen"]
    assert first.level == pytest.approx(-20.0)
    assert first.last_changes == pytest.approx([-3.9, -4.1])


def test_the_curve_of_a_run_that_only_fine_tuned_is_that_of_the_pairs_it_watched(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert read_curve(run, "chosen") is None
    lines = [{"watched/logprob/chosen": -20.0 + step, "watched/logprob/rejected": -30.0 - step} for step in range(20)]
    run.model_zero.train.root.mkdir(parents=True)
    run.model_zero.train.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curve(run, "chosen") is None
    finish(run, "sft", None)
    curve = read_curve(run, "rejected")
    assert curve is not None
    assert (curve.level, curve.changes[:3], curve.last_changes) == (-30.0, [0.0, -1.0, -2.0], [-18.0, -19.0])
    run.model_zero.train.metrics.write_text('{"logprob/chosen": -1.0}\n')
    assert read_curve(run, "chosen") is None


def test_a_claim_without_numbers_is_missing(tmp_path: Path, plan: TablePlan) -> None:
    empty = TablePlan(layout=plan.layout, folder=tmp_path / "elsewhere", seeds=[0], options=[])
    findings = collect_table(empty, {}).findings
    assert {finding.verdict for finding in findings} == {"missing"}
    assert findings[1].numbers == "numbers of irpo_1, dpo are missing"


def test_rows_without_a_problem_in_common_are_not_compared(plan: TablePlan) -> None:
    for seed in plan.seeds:
        part = part_path(RunFolder(plan.folder_of(seed) / "irpo").iteration(0).graded("test"), 0)
        grades = [
            dataclasses.replace(g, problem_id=f"other-{g.problem_id}") for g in read_records(part, GradedCandidate)
        ]
        write_records(part, grades, GradedCandidate)
    finding = collect_table(plan, {}).findings[0]
    assert (finding.verdict, finding.numbers) == ("missing", "numbers of one seed and the same problems are missing")


def test_the_files_say_what_the_table_says(result: TableResult, plan: TablePlan) -> None:
    write_result(result)
    lines = (plan.folder / "table.md").read_text().splitlines()
    assert lines[:6] == [
        "Seeds 0, 1, 2. Paper: the paper.",
        "",
        "| row | ours, % | 95% interval | by seed | paper, % |",
        "|---|---|---|---|---|",
        "| M_0 | 22.0 | 17.0 to 27.0 | 20.0 22.0 24.0 | 55.6 |",
        "| M_0, maj@8 | 52.0 | 47.0 to 57.0 | 50.0 52.0 54.0 | - |",
    ]
    assert "- **shown**: less each time (gains +41.0, +9.0 points, means of 2 seeds)" in lines
    assert lines[-5:] == [
        "- dpo took over from irpo: grade 0 (60 s spared)",
        "- all steps took 6 min; without sharing they would have taken 7 min",
        "- missing: IRPO again, seed 2",
        "- missing: DPO, seed 2",
        "- failed: dpo, seed 2: no pairs",
    ]
    stored = read_json(plan.folder / "table.json")
    assert [row["id"] for row in stored["rows"]] == ["m0", "m0_vote", "irpo_1", "irpo_2", "dpo", "irpo_1_sample"]
    assert stored["rows"][3]["missing_seeds"] == [2]
    assert stored["rows"][4]["by_seed"] == {"0": 0.5, "1": 0.7}
    assert stored["claims"][0]["verdict"] == "shown"
    for figure in ("curves", "accuracy"):
        assert (plan.folder / f"{figure}.svg").read_text().startswith("<svg"), figure


def test_showing_a_table_that_was_not_begun_names_everything(
    tmp_path: Path, plan: TablePlan, capsys: pytest.CaptureFixture[str]
) -> None:
    show(TablePlan(layout=plan.layout, folder=tmp_path / "new", seeds=[0], options=[]))
    printed = capsys.readouterr().out
    assert "missing: IRPO again, seed 0" in printed
    assert (tmp_path / "new" / "table.md").exists()
