"""Import and export hold slices, never a model: peak memory of each rank, of a model in many files.

Memory is what the kernel counts as resident, pages of mapped files included; its peak is reset before the work.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from irpo_nemo.config import ParallelConfig
from tests.distributed.ranks import run_on_ranks

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 28,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
SHARD_GIB = 0.016
LAYOUTS = {
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """450 MB of random weights, a file for each layer and one for the rest."""
    from irpo_nemo.training.families.llama import FAMILY

    folder = tmp_path_factory.mktemp("memory") / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in FAMILY.hf_tensors(SHAPE).items():
        layer = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"model-{layer}.safetensors", {})[name] = torch.randn(shape) * 0.02
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def read_memory(field: str) -> int:
    """VmRSS: what is resident now; VmHWM: the most since the peak was reset. In bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    """Forget the peak; return what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_memory("VmRSS")


def import_and_export(source: Path, target: Path, parallel: ParallelConfig) -> dict[str, int]:
    """On each rank: growth of the peak while its share, which is there, is filled, and while the model is written."""
    from irpo_nemo.training.families.weights import export_hf, load_hf_weights
    from irpo_nemo.training.gpt import build_gpt_model
    from irpo_nemo.training.parallel import initialize_parallel

    initialize_parallel(parallel, seed=0)
    chunks = build_gpt_model(source, parallel=parallel, bf16=False, load_weights=False)
    before = reset_peak()
    load_hf_weights(chunks, source)
    imported = read_memory("VmHWM") - before
    before = reset_peak()
    export_hf(chunks, source_folder=source, target_folder=target, max_shard_gib=SHARD_GIB)
    share = sum(parameter.numel() * parameter.element_size() for chunk in chunks for parameter in chunk.parameters())
    return {"import": imported, "export": read_memory("VmHWM") - before, "share": share}


def read_whole(folder: Path) -> int:
    """What holding the whole model would show."""
    before = reset_peak()
    tensors = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    assert all(bool(torch.isfinite(tensor.sum())) for part in tensors for tensor in part.values())
    return read_memory("VmHWM") - before


@pytest.fixture(scope="module")
def measured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[dict[str, int]]]]:
    results = {}
    for name, parallel in LAYOUTS.items():
        target = tmp_path_factory.mktemp(name) / "hf"
        results[name] = (target, run_on_ranks(import_and_export, 2, model, target, parallel))
    return results


def test_the_measure_sees_a_model_that_is_held_whole(model: Path) -> None:
    (growth,) = run_on_ranks(read_whole, 1, model)
    assert growth > 0.95 * size_of(model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_import_takes_little_beside_the_share_of_a_rank(
    measured: dict[str, tuple[Path, list[dict[str, int]]]], layout: str, model: Path
) -> None:
    whole = size_of(model)
    for rank in measured[layout][1]:
        assert rank["share"] < 0.52 * whole
        assert rank["import"] < 0.2 * whole


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_holds_a_layer_and_a_file_at_a_time(
    measured: dict[str, tuple[Path, list[dict[str, int]]]], layout: str, model: Path
) -> None:
    whole = size_of(model)
    for rank in measured[layout][1]:
        assert rank["export"] < 0.4 * whole


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_export_has_an_index_and_the_weights_that_were_imported(
    measured: dict[str, tuple[Path, list[dict[str, int]]]], layout: str, model: Path
) -> None:
    target, _ = measured[layout]
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert len(files) > 20 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * 4 for path in model.glob("*.safetensors") for tensor in load_file(path).values()
    )
    assert set(index["weight_map"].values()) == set(files)
    expected = {name: tensor for path in model.glob("*.safetensors") for name, tensor in load_file(path).items()}
    found = {name: tensor for file in files for name, tensor in load_file(target / file).items()}
    assert index["weight_map"].keys() == expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
