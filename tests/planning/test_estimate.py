"""Estimates of whole runs: the ready configurations fit, work is counted by hand, layouts are found or refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import config_names, load_config
from irpo_nemo.planning.estimate import Estimate, count_problems, estimate_run, plan_work, read_layout, read_machine
from irpo_nemo.planning.figures import GPUS
from irpo_nemo.planning.layouts import Demand, examine, find_layout, find_smallest
from irpo_nemo.planning.memory import GIB, Layout
from irpo_nemo.planning.speed import Batch
from tests.planning.public_runs import LLAMA_3_70B

ON_GPUS = [name for name in config_names() if name.startswith(("gsm8k", "hendrycks", "arc")) and "tiny" not in name]


def estimate(name: str, *overrides: str) -> Estimate:
    config = load_config(name, overrides)
    problems = count_problems(config)
    assert problems is not None
    found = estimate_run(config, num_problems=problems)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_ready_configuration_fits_and_nothing_is_much_faster(name: str) -> None:
    found = estimate(name)
    assert found.fits
    assert found.better is None
    assert found.sampling_memory is not None
    assert found.sampling_memory.sequences > load_config(name).sampler.batch_size


def test_the_papers_work_is_counted_by_hand() -> None:
    config = load_config("gsm8k")
    work = plan_work(config, 7473, 1319)
    assert (work.pairs, work.steps) == (60000, 60000 // 16)
    assert work.batch == Batch(tokens=16 * (200 + 2 * 250), units=16)
    assert work.reference_tokens == 7473 * 200 + 120000 * 250
    assert work.training_samples == 7473 * 30 * 250
    assert work.evaluation_samples == 1319 * 33 * 250


def test_prompts_that_are_not_shared_are_computed_for_every_completion() -> None:
    config = load_config("gsm8k", ["training.share_prompts=false"])
    work = plan_work(config, 7473, 1319)
    assert work.batch.tokens == 16 * 2 * (200 + 250)
    assert work.reference_tokens == 120000 * (200 + 250)


def test_the_whole_run_is_its_iterations_and_a_last_evaluation() -> None:
    found = estimate("gsm8k", "cluster.sampler_tokens_per_second=1000", "cluster.mfu=0.4")
    work = found.workload
    sampling = (work.training_samples + work.evaluation_samples) / (1000 * 64)
    step = 6 * found.model.num_parameters * work.batch.tokens / (64 * 989e12 * 0.4)
    reference = 2 * found.model.num_parameters * work.reference_tokens / (64 * 989e12 * 0.4)
    iteration = sampling + reference + work.steps * step
    assert found.iteration_seconds == pytest.approx(iteration)
    assert found.run_seconds == pytest.approx(4 * iteration + work.evaluation_samples / (1000 * 64))


def test_measured_figures_replace_public_ones() -> None:
    slower = estimate("gsm8k_llama_3_1_8b", "cluster.mfu=0.1")
    faster = estimate("gsm8k_llama_3_1_8b", "cluster.mfu=0.2")
    assert slower.training_seconds == pytest.approx(2 * faster.training_seconds)
    assert estimate("gsm8k", "cluster.gpu_memory_gib=20").fits is False
    often = estimate("gsm8k", "cluster.failure_hours_per_gpu=100").goodput[0]
    assert often.failure_seconds == 100 * 3600 / 64


def test_goodput_is_told_of_this_run_and_of_thousands_of_gpus() -> None:
    found = estimate("gsm8k")
    assert [goodput.ranks for goodput in found.goodput] == [64, 1024, 4096]
    assert all(goodput.best >= goodput.expected for goodput in found.goodput)
    assert found.chain_seconds is not None
    assert found.chain_seconds[0] > 4 * found.training_seconds


def demand_of(config: IRPOConfig, *, gib: float) -> Demand:
    return Demand(
        batch=Batch(tokens=11200, units=16),
        longest_micro_batch=2 * config.pairing.max_sequence_length,
        memory_bytes=gib * GIB,
    )


def test_a_layout_is_found_that_fits_and_beats_what_was_asked_for() -> None:
    config = load_config("gsm8k", ["parallel.pipeline_model_parallel_size=1"])
    machine, demand = read_machine(config), demand_of(config, gib=79.2)
    asked = examine(LLAMA_3_70B, read_layout(config), machine, demand)
    found = find_layout(LLAMA_3_70B, like=asked.layout, machine=machine, demand=demand)
    assert found is not None
    assert found.memory.total < 79.2 * GIB
    assert found.layout.ranks == 64
    assert found.seconds < asked.seconds


def test_too_few_gpus_are_told_how_many_would_do() -> None:
    config = load_config("gsm8k")
    machine, demand = read_machine(config), demand_of(config, gib=79.2)
    one_node = Layout(ranks=8, bf16=True)
    assert find_layout(LLAMA_3_70B, like=one_node, machine=machine, demand=demand) is None
    smallest = find_smallest(LLAMA_3_70B, like=one_node, machine=machine, demand=demand)
    assert smallest is not None
    # 18 bytes for each of 70e9 parameters are 74 GiB on each of 16 GPUs, before activations and overhead.
    assert smallest.layout.ranks == 32


def test_an_unknown_gpu_or_shape_gives_no_estimate(tmp_path: Path) -> None:
    assert estimate_run(load_config("gsm8k", ["cluster.gpu=null"]), num_problems=(1, 1)) is None
    nameless = load_config("jsonl", ["cluster=h100_node", f"model.path={tmp_path}", *FILES])
    assert estimate_run(nameless, num_problems=(1, 1)) is None


FILES = ["task.train_path=train.jsonl", "task.test_path=test.jsonl"]


def test_config_json_alone_is_enough(tmp_path: Path) -> None:
    shape = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config = load_config("jsonl", ["cluster=h100_node", f"model.path={tmp_path}", *FILES])
    found = estimate_run(config, num_problems=(100, 100))
    assert found is not None
    assert found.model == estimate("gsm8k_llama_3_1_8b").model


def test_the_figures_of_a_gpu_are_the_trainers() -> None:
    from irpo_nemo.training.step_log import PEAK_FLOPS

    assert {name: gpu.peak_flops for name, gpu in GPUS.items()} == PEAK_FLOPS


def test_the_command_prints_an_estimate_without_weights_or_problems() -> None:
    command = [sys.executable, "-m", "irpo_nemo", "plan", "gsm8k", "model.path=absent"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "gsm8k: model.path: absent is not a folder" in done.stderr
    assert "training        33.8 GiB" in done.stdout
    assert "GPU-hours" in done.stdout


def test_what_the_layouts_share_is_kept() -> None:
    config = load_config("gsm8k")
    machine, demand = read_machine(config), demand_of(config, gib=200)
    like = replace(read_layout(config), distributed_optimizer=False)
    found = find_layout(LLAMA_3_70B, like=like, machine=machine, demand=demand)
    assert found is not None
    assert not found.layout.distributed_optimizer
