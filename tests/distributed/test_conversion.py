"""Hugging Face folder to Megatron checkpoint and back, bit for bit, whatever the layouts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from irpo_nemo.config import ParallelConfig
from tests.distributed.ranks import run_on_ranks
from tests.distributed.sessions import make_session
from tests.training.tiny import make_config, make_model_folder

ONE = ParallelConfig()
TP2 = ParallelConfig(tensor_model_parallel_size=2)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)


def to_megatron(hf_folder: Path, target: Path, parallel: ParallelConfig) -> None:
    from irpo_nemo.training.conversion import convert_to_megatron

    convert_to_megatron(hf_folder, target, parallel=parallel)


def to_hf(checkpoint: Path, source: Path, target: Path, parallel: ParallelConfig) -> None:
    from irpo_nemo.training.conversion import convert_to_hf

    convert_to_hf(checkpoint, source, target, parallel=parallel)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaForCausalLM

    root = tmp_path_factory.mktemp("conversion")
    make_model_folder(root / "untied")
    make_model_folder(root / "tied", tied=True)
    LlamaForCausalLM.from_pretrained(root / "untied", dtype=torch.bfloat16).save_pretrained(root / "bf16")
    return root


def ranks_of(parallel: ParallelConfig) -> int:
    return parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size


@pytest.mark.parametrize("model", ["untied", "tied", "bf16"])
@pytest.mark.parametrize(("there", "back"), [(ONE, ONE), (TP2, ONE), (ONE, PP2)])
def test_there_and_back_is_bit_for_bit(
    models: Path, model: str, there: ParallelConfig, back: ParallelConfig, tmp_path: Path
) -> None:
    run_on_ranks(to_megatron, ranks_of(there), models / model, tmp_path / "megatron", there)
    run_on_ranks(to_hf, ranks_of(back), tmp_path / "megatron", models / model, tmp_path / "hf", back)
    expected, found = (load_file(folder / "model.safetensors") for folder in (models / model, tmp_path / "hf"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert (tmp_path / "hf/config.json").read_text() == (models / model / "config.json").read_text()


def test_a_training_checkpoint_becomes_what_its_run_exported(models: Path, tmp_path: Path) -> None:
    session = make_session(tmp_path, model=models / "untied")
    session.run(make_config(tensor=2), ranks=2)
    checkpoint = session.folder.train.checkpoints / "step_00000005"
    run_on_ranks(to_hf, 1, checkpoint, models / "untied", tmp_path / "again", ONE)
    assert (tmp_path / "again/model.safetensors").read_bytes() == session.weights


def test_a_checkpoint_of_another_model_is_refused(models: Path, tmp_path: Path) -> None:
    run_on_ranks(to_megatron, 1, models / "tied", tmp_path / "megatron", ONE)
    with pytest.raises(AssertionError) as caught:
        run_on_ranks(to_hf, 1, tmp_path / "megatron", models / "untied", tmp_path / "hf", ONE)
    assert f"ArtifactError: {tmp_path}/megatron: does not hold the weights of this model (" in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_a_folder_that_is_no_checkpoint_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        run_on_ranks(to_hf, 1, tmp_path, models / "untied", tmp_path / "hf", ONE)
    assert f"ArtifactError: {tmp_path}: is not a distributed checkpoint; name a folder such as" in str(caught.value)


def test_an_existing_target_is_not_overwritten(models: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"ArtifactError: .* exists already, and an export does not overwrite"):
        run_on_ranks(to_megatron, 1, models / "untied", tmp_path, ONE)


def irpo(*arguments: Path | str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "irpo_nemo", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_the_command_converts_both_ways(models: Path, tmp_path: Path) -> None:
    assert irpo("to-megatron", models / "untied", tmp_path / "megatron").returncode == 0
    assert irpo("to-hf", tmp_path / "megatron", models / "untied", tmp_path / "hf").returncode == 0
    expected, found = (load_file(folder / "model.safetensors") for folder in (models / "untied", tmp_path / "hf"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("to-megatron", "absent", "target", "parallel.tensor=2"),
            "parallel.tensor=2: is no size; wanted parallel.tensor_model_parallel_size=N or "
            "parallel.pipeline_model_parallel_size=N\n",
        ),
        (
            ("to-megatron", "absent", "target"),
            "absent is not a folder; name a Hugging Face folder on this machine\n",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    answer = irpo(*arguments)
    assert answer.returncode == 2
    assert answer.stderr == message
