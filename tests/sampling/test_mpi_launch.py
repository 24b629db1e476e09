"""A stage whose engine spans nodes, under a launcher that does what is known of trtllm-llmapi-launch."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from irpo_nemo.artifacts import list_parts
from irpo_nemo.config import IRPOConfig, TensorRTLLMConfig
from irpo_nemo.config_checks import check_relations
from irpo_nemo.config_files import dump_config
from irpo_nemo.errors import ConfigError
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling.mpi_launch import check_launch
from irpo_nemo.sampling.tensorrt_llm import engine_arguments
from tests.sampling.test_shards import make_run
from tests.sampling.test_tensorrt_llm import DOUBLE, read_record

LAUNCHER = """#!/bin/bash
# rank 0: the command, without MPI and Slurm, beside a leader that waits for the engine's goodbye; others: ranks
export TLLM_SPAWN_PROXY_PROCESS=1 tllm_mpi_size=$SLURM_NTASKS TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR=$GOODBYE
if [ "$SLURM_PROCID" = 0 ]; then
    (
        for name in $(compgen -e); do case $name in SLURM_*|PMIX_*|OMPI_*) unset "$name";; esac; done
        $@
    ) &
fi
until [ -e "$GOODBYE" ]; do sleep 0.05; done
wait
"""


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> IRPOConfig:
    config = make_run(tmp_path, model_folder)
    config.sampler.name = "tensorrt_llm"
    config.sampler.tensorrt_llm = TensorRTLLMConfig(
        tensor_parallel_size=2, pipeline_parallel_size=2, nodes_per_engine=2
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    launcher = tmp_path / "trtllm-llmapi-launch"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    return config


def launch(folder: Path, *, ranks: int = 4, **variables: str) -> list[int]:
    """Start the tasks as srun does, with --kill-on-bad-exit; their exit codes."""
    path = f"{DOUBLE}:{Path(__file__).parents[2]}"
    variables |= {"PYTHONPATH": path, "GOODBYE": str(folder / "goodbye"), "DOUBLE_RECORD": str(folder / "record.jsonl")}
    variables |= {"SLURM_NTASKS": str(ranks), "PMIX_RANK": "0", "CUDA_VISIBLE_DEVICES": "0,1"}
    stage = [sys.executable, "-m", "irpo_nemo", "stage", "sample", str(folder / "config.yaml"), "iteration=0"]
    with (folder / "tasks.log").open("w") as log:
        tasks = [
            subprocess.Popen(
                [folder / "trtllm-llmapi-launch", *stage],
                env=os.environ | variables | {"SLURM_PROCID": str(rank)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for rank in range(ranks)
        ]
    first = tasks[0].wait(timeout=120)
    for task in tasks[1:] if first else []:
        os.killpg(task.pid, signal.SIGTERM)
    return [first, *(task.wait(timeout=30) for task in tasks[1:])]


def test_an_engine_over_two_nodes_draws_all_and_its_launch_ends(run: IRPOConfig, tmp_path: Path) -> None:
    assert launch(tmp_path) == [0, 0, 0, 0]
    samples = RunFolder(run.run_folder).iteration(0).samples
    assert [len(list_parts(samples(split))) for split in ("train", "test")] == [3, 2]
    (started,) = read_record(tmp_path / "record.jsonl", "environment")
    environment = started["environment"]
    assert not [name for name in environment if name.startswith(("SLURM_", "PMIX_"))]
    assert (environment["TLLM_SPAWN_PROXY_PROCESS"], environment["tllm_mpi_size"]) == ("1", "4")
    assert "TLLM_WORKER_USE_SINGLE_PROCESS" not in environment
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "gpus_per_node")
    assert [started["arguments"][name] for name in sizes] == ["2", "2", "2"]
    assert len(list(read_record(tmp_path / "record.jsonl", "shutdown"))) == 1


@pytest.mark.parametrize(
    ("variables", "ranks", "said"),
    [
        ({"DOUBLE_FAILS_TO_START": "1"}, 4, "RuntimeError: CUDA out of memory"),
        (
            {},
            2,
            "sampler.tensorrt_llm.tensor_parallel_size: makes 4 ranks with pipeline_parallel_size, but "
            "trtllm-llmapi-launch was started with 2 tasks. Give srun --nodes=2 --ntasks-per-node=2.\n",
        ),
    ],
)
@pytest.mark.usefixtures("run")
def test_a_stage_that_fails_ends_its_launch(tmp_path: Path, variables: dict[str, str], ranks: int, said: str) -> None:
    assert launch(tmp_path, ranks=ranks, **variables) == [-signal.SIGTERM] * ranks
    assert said in (tmp_path / "tasks.log").read_text()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("TLLM_SPAWN_PROXY_PROCESS", "1")
    monkeypatch.setenv("tllm_mpi_size", "16")
    return monkeypatch


def test_an_engine_over_nodes_needs_its_launcher(launched: pytest.MonkeyPatch, model_folder: Path) -> None:
    options = TensorRTLLMConfig(tensor_parallel_size=8, pipeline_parallel_size=2, nodes_per_engine=2)
    check_launch(options)
    launched.delenv("TLLM_SPAWN_PROXY_PROCESS")
    with pytest.raises(ConfigError) as error:
        check_launch(options)
    assert str(error.value) == (
        "sampler.tensorrt_llm.nodes_per_engine: is 2, but nothing has started the ranks of such an engine. Start the "
        "stage with srun --mpi=pmix --nodes=2 --ntasks-per-node=8 trtllm-llmapi-launch irpo stage sample ..., or set "
        "it to 1."
    )
    check_launch(TensorRTLLMConfig(tensor_parallel_size=8))
    config = IRPOConfig()
    for nodes, gpus_per_node in ((1, None), (2, 8)):
        config.sampler.tensorrt_llm = TensorRTLLMConfig(tensor_parallel_size=16, nodes_per_engine=nodes)
        arguments = engine_arguments(config.sampler, model_folder, trust_remote_code=False)
        assert arguments["gpus_per_node"] == gpus_per_node


def test_sizes_that_cannot_be_are_found_before_anything_starts() -> None:
    config = IRPOConfig()
    config.sft.enabled = True
    config.sampler.tensorrt_llm = TensorRTLLMConfig(tensor_parallel_size=8, nodes_per_engine=3, num_engines=2)
    assert check_relations(config) == [
        "sampler.tensorrt_llm.nodes_per_engine: is 3, but must divide tensor_parallel_size x pipeline_parallel_size = "
        "8",
        "sampler.tensorrt_llm.num_engines: is 2, but a stage has one engine of several nodes; leave it null, and give "
        "each engine a shard of its own (shard=I/N)",
    ]
