"""Every file in conf/ loads, and holds only what differs from the defaults in the dataclasses."""

import shutil
from pathlib import Path

import pytest

from irpo_nemo import config_files
from irpo_nemo.config_checks import check_relations
from irpo_nemo.config_files import CONFIG_GROUPS, config_names, config_root, dump_config, load_config

NEEDED = {
    "gsm8k_tiny": ["task.train_path=train.jsonl", "task.test_path=test.jsonl"],
    "jsonl": ["model.path=/models/llama", "task.train_path=train.jsonl", "task.test_path=test.jsonl"],
}
"""What a person must add to a configuration."""

GROUP_FILES = sorted(
    path.relative_to(config_root()) for group in CONFIG_GROUPS for path in (config_root() / group).glob("*.yaml")
)


@pytest.mark.parametrize("name", config_names())
def test_every_configuration_loads(name: str) -> None:
    config = load_config(name, NEEDED.get(name, ()))
    assert config.name == name
    assert check_relations(config) == []


@pytest.mark.parametrize("file", GROUP_FILES, ids=str)
def test_every_group_file_loads(file: Path) -> None:
    group, choice = file.parent.name, file.stem
    overrides = [f"{group}={choice}", "task.train_path=train.jsonl", "task.test_path=test.jsonl"]
    config = load_config("quickstart", overrides)
    section = getattr(config, group)
    assert getattr(section, "name", choice) == choice


@pytest.mark.parametrize("folder", ['it\'s "a"; $(run) `100 #`', "a\\'b\\", "[a,b]{c:d}", "\u00e9 =+"])
def test_conf_may_stand_in_any_folder(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / folder / "conf"
    shutil.copytree(config_root(), copy)
    monkeypatch.setattr(config_files, "config_root", lambda: copy)
    run = tmp_path / folder / "config.yaml"
    run.write_text(dump_config(load_config("quickstart")) + "defaults: [{loss: dpo}, _self_]\n")
    assert load_config("quickstart").loss.beta == load_config(str(run)).loss.beta


def test_gsm8k_is_the_papers_run() -> None:
    config = load_config("gsm8k")
    assert config.num_iterations == 4
    assert (config.sampling.num_candidates, config.sampling.temperature) == (30, [0.8, 0.8, 1.3, 1.3])
    assert (config.pairing.num_pairs_per_problem, config.pairing.max_pairs) == (10, 60000)
    assert config.pairing.gold_solutions
    assert config.pairing.cap == "wrap_around"
    assert (config.loss.beta, config.loss.dpo_weight, config.loss.nll_weight) == (0.1, 1.0, 1.0)
    assert (config.training.global_batch_size, config.training.optimizer.learning_rate) == (16, 7e-7)
    assert config.training.max_steps == 5000
    assert (config.evaluation.num_samples, config.evaluation.temperature) == (32, 0.8)


def test_hendrycks_math_is_the_papers_run() -> None:
    config = load_config("hendrycks_math")
    assert config.num_iterations == 3
    assert (config.sampling.num_candidates, config.sampling.temperature) == (20, [0.8, 0.8, 1.0])
    assert (config.pairing.num_pairs_per_problem, config.training.max_steps) == (15, 5000)


def test_arc_challenge_is_the_papers_run() -> None:
    config = load_config("arc_challenge")
    assert config.num_iterations == 3
    assert (config.sampling.num_candidates, config.sampling.temperature) == (30, [0.8, 0.8, 1.3])
    assert (config.pairing.num_pairs_per_problem, config.training.max_steps) == (20, 4000)
    assert not config.pairing.gold_solutions
    assert config.task.extra_train_paths == ["allenai/ai2_arc:ARC-Easy"]
