"""The file of a table: what its runs compose to, and its mistakes."""

import dataclasses
from pathlib import Path

import pytest

from irpo_nemo.config import IRPOConfig, LossConfig
from irpo_nemo.config_files import load_config
from irpo_nemo.errors import ConfigError
from irpo_nemo.table.command import make_plan
from irpo_nemo.table.layout import load_layout, table_names
from irpo_nemo.table.runs import TablePlan, estimate_by_seed


@pytest.fixture(scope="module")
def plan() -> TablePlan:
    return make_plan("paper", folder="t", seeds="3", options=["training.max_steps=7"])


@pytest.fixture(scope="module")
def runs(plan: TablePlan) -> dict[str, IRPOConfig]:
    """The configuration of every run of the paper's table."""
    return {run: plan.load(run, 3) for run in plan.layout.runs}


def test_every_run_has_the_same_problems_and_sampling(runs: dict[str, IRPOConfig]) -> None:
    base = load_config("quickstart", ["seed=3", "training.max_steps=7", "sampling.max_new_tokens=96"])
    stories = dataclasses.replace(base.task.arithmetic, max_operations=8, terse_share=0.5)
    for name, config in runs.items():
        assert (config.run_root, config.name, config.reuse_from, config.seed) == ("t/seed_3", name, ["t/seed_3"], 3)
        assert config.evaluation.num_samples == (32 if name == "irpo" else 0)
        assert (config.sampling, config.model.num_layers) == (base.sampling, 4)
        rate = config.training.optimizer.learning_rate
        assert rate == pytest.approx(5e-6 * (12 if name.endswith("_fast") else 1))
        optimizer = dataclasses.replace(base.training.optimizer, learning_rate=rate)
        assert config.training == dataclasses.replace(base.training, optimizer=optimizer)
        mixed = dataclasses.replace(config.task.arithmetic, demonstrations="mixed")
        assert mixed == stories


def test_losses_and_lengths_are_those_of_the_papers_rows(runs: dict[str, IRPOConfig]) -> None:
    irpo, dpo, sft = LossConfig(), LossConfig(nll_weight=0.0), LossConfig(dpo_weight=0.0)
    assert {name: (config.loss, config.num_iterations) for name, config in runs.items()} == {
        "irpo": (irpo, 4),
        "irpo_twice_the_pairs": (irpo, 1),
        "dpo": (dpo, 1),
        "sft_on_chosen": (sft, 1),
        "sft_on_twice_the_chosen": (sft, 1),
        "irpo_from_sft": (irpo, 1),
        "dpo_from_sft": (dpo, 1),
        "sft_on_gold": (irpo, 0),
        "alpha_0.25": (LossConfig(nll_weight=0.25), 1),
        "alpha_0.5": (LossConfig(nll_weight=0.5), 1),
        "alpha_2": (LossConfig(nll_weight=2.0), 1),
        "beta_0.05": (LossConfig(beta=0.05), 1),
        "beta_0.5": (LossConfig(beta=0.5), 1),
        "beta_1": (LossConfig(beta=1.0), 1),
        "irpo_fast": (irpo, 1),
        "dpo_fast": (dpo, 1),
        "sft_on_chosen_fast": (sft, 1),
    }
    assert (irpo.beta, irpo.nll_weight) == (0.1, 1.0)


def test_twice_the_data_is_twice_the_pairs_of_a_problem(runs: dict[str, IRPOConfig]) -> None:
    pairs = {name: config.pairing.num_pairs_per_problem for name, config in runs.items()}
    twice = {"irpo_twice_the_pairs", "sft_on_twice_the_chosen"}
    assert {name for name, count in pairs.items() if count == 2 * pairs["irpo"]} == twice
    assert {pairs[name] for name in pairs.keys() - twice} == {pairs["irpo"]}


def test_what_starts_from_sft_trains_on_the_same_pairs(runs: dict[str, IRPOConfig]) -> None:
    start = "t/seed_3/sft_on_chosen/iteration_00"
    for name in ("irpo_from_sft", "dpo_from_sft"):
        config = runs[name]
        assert not config.sft.enabled
        assert (config.model.path, config.pairing.pairs_path) == (f"{start}/hf", f"{start}/pairs.parquet")
    others = (config for name, config in runs.items() if not name.endswith("_from_sft"))
    assert {config.pairing.pairs_path for config in others} == {None}


def test_sft_on_gold_starts_from_m_0_and_sees_as_many_examples_as_an_iteration(runs: dict[str, IRPOConfig]) -> None:
    config, iteration = runs["sft_on_gold"], runs["irpo"]
    assert config.model.path == "t/seed_3/irpo/m0/hf"
    assert config.sft.watched_pairs_path == "t/seed_3/irpo/iteration_00/pairs.parquet"
    assert config.task.arithmetic.demonstrations == "gold"
    assert config.sft.max_steps is None
    assert config.sft.num_epochs == iteration.pairing.num_pairs_per_problem
    assert config.sft.optimizer == iteration.training.optimizer
    assert config.sft.global_batch_size == iteration.training.global_batch_size


def test_rows_carry_the_papers_numbers(plan: TablePlan) -> None:
    papers = {row.id: row.paper for row in plan.layout.rows if row.paper is not None}
    assert papers == {
        "m0": 55.6,
        "m0_vote": 70.7,
        "sft_on_gold": 63.5,
        "star": 65.2,
        "star_2x": 66.9,
        "dpo": 61.8,
        "dpo_from_sft": 60.3,
        "irpo_1": 73.1,
        "irpo_2": 78.0,
        "irpo_3": 81.1,
        "irpo_4": 81.6,
        "irpo_3_vote": 88.2,
        "irpo_4_vote": 88.7,
        "irpo_from_sft": 73.1,
        "irpo_2x": 74.8,
    }
    endings = {"greedy": "", "majority": "_vote", "pass@1": "_sample"}
    assert all(row.id.endswith(endings[row.decoding]) for row in plan.layout.rows)
    assert all(row.decoding != "greedy" for row in plan.layout.rows if row.id.endswith(("_vote", "_sample")))
    greedy = {row.id: (row.run, row.iteration) for row in plan.layout.rows if row.run == "irpo"}
    assert greedy["m0"] == greedy["m0_vote"] == ("irpo", 0)
    assert [greedy[f"irpo_{t}"] for t in (1, 2, 3, 4)] == [("irpo", t) for t in (1, 2, 3, 4)]


def test_shared_work_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("runs: {a: [num_iterations=1], b: [num_iterations=1, loss=dpo]}\n")
    both = estimate_by_seed(make_plan(str(path), folder="t", seeds=None, options=[]))[0]
    path.write_text("runs: {a: [num_iterations=1]}\n")
    one = estimate_by_seed(make_plan(str(path), folder="t", seeds=None, options=[]))[0]
    # 600 problems x 5 pairs, then 400 test problems x 9 completions
    assert both - one == pytest.approx(3000 / 64 + 3600 / 400 + 20)


def test_a_seed_of_the_papers_table_takes_less_than_two_hours() -> None:
    whole = make_plan("paper", folder="t", seeds="0", options=[])
    assert 0 < estimate_by_seed(whole)[0] < 2 * 3600


def test_a_folder_with_odd_characters_reaches_the_run(plan: TablePlan) -> None:
    odd = dataclasses.replace(plan, folder=Path("a b/{c}=1,[d]:(e)\\f"))
    config = odd.load("dpo_from_sft", 3)
    assert config.run_root == f"{odd.folder}/seed_3"
    assert config.model.path == f"{odd.folder}/seed_3/sft_on_chosen/iteration_00/hf"


def mistakes_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_layout(str(path))
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def test_mistakes_in_a_table_are_reported_together(tmp_path: Path) -> None:
    text = """
runs: {a: []}
rows:
  - {id: r, title: R, run: a, iteration: 0}
  - {id: r, title: R, run: b, iteration: 0, decoding: beam}
comparisons: [{says: "x > y", better: r, worse: s}]
curves: [{says: up, run: a, side: left, direction: rises}]
"""
    assert mistakes_of(tmp_path, text) == [
        "rows: r comes twice",
        "row r: names run b, which is not under runs",
        "comparisons, 'x > y': names row s, which is not under rows",
        "decoding: is beam, but must be one of greedy, majority, pass@1",
        "side: is left, but must be one of chosen, rejected",
    ]


def test_an_unknown_key_of_a_table_is_a_mistake(tmp_path: Path) -> None:
    (line,) = mistakes_of(tmp_path, "rusn: {a: []}\n")
    assert "rusn" in line


def test_a_table_that_is_not_there_is_named() -> None:
    assert table_names() == ["paper"]
    with pytest.raises(ConfigError, match=r"^papre: no such table\. Give a path, or one of: paper\.$"):
        load_layout("papre")


def test_options_that_would_change_what_rows_mean_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan("paper", folder=None, seeds=None, options=["loss.beta=1", "seed=4", "sampling.num_candidates=6"])
    assert str(caught.value).splitlines() == [
        "loss.beta: is what the table's runs differ in; change it in a copy of the table's file",
        "seed: is set by the table itself; give seeds=0,1,2 and folder=DIR",
    ]
    with pytest.raises(ConfigError, match=r"^seeds: is 1-3, but whole numbers"):
        make_plan("paper", folder=None, seeds="1-3", options=[])
