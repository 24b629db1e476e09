"""config.json, layouts, the description of llama's weights, and model folders on disk: what needs no ranks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from irpo_nemo.config import IRPOConfig, ModelConfig, ParallelConfig
from irpo_nemo.errors import ArtifactError, ConfigError, ModelError
from irpo_nemo.model_shape import (
    MODEL_TYPES,
    ModelShape,
    check_layout,
    find_model_mistakes,
    padded_vocab_size,
    read_hf_config,
)
from irpo_nemo.training.families import Piece, find_family, llama
from irpo_nemo.training.families.hf_folder import HFFolderWriter, HFWeights
from tests.training import tiny

LLAMA = tiny.SHAPE | {"model_type": "llama", "max_position_embeddings": 64, "tie_word_embeddings": False}
KNOWN = "llama, mistral, qwen2, qwen3"
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_rope_is_read_as_transformers_4_and_5_spell_it() -> None:
    old = LLAMA | {"rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING, "torch_dtype": "bfloat16"}
    new = LLAMA | {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3_SCALING}, "dtype": "bfloat16"}
    assert ModelShape.from_hf_config(old) == ModelShape.from_hf_config(new)
    assert ModelShape.from_hf_config(new).rope_theta == 500000.0
    assert ModelShape.from_hf_config(new).dtype == "bfloat16"


@pytest.mark.parametrize(
    "rope", [{}, {"rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}]
)
def test_plain_rope_has_no_scaling(rope: dict[str, Any]) -> None:
    shape = ModelShape.from_hf_config(LLAMA | rope)
    assert (shape.rope_theta, shape.rope_scaling) == (10000.0, None)


def test_sizes_left_out_follow_from_the_others() -> None:
    config = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}
    shape = ModelShape.from_hf_config(config)
    assert (shape.num_key_value_heads, shape.head_dim) == (8, 4)


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_config_without_sizes_is_refused_with_every_mistake(tmp_path: Path) -> None:
    left_out = ("hidden_size", "vocab_size", "model_type")
    write_config(tmp_path, {key: value for key, value in LLAMA.items() if key not in left_out})
    with pytest.raises(ModelError) as caught:
        read_hf_config(tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/config.json gives no number for hidden_size; is it a decoder-only model?",
        f"{tmp_path}/config.json gives no number for vocab_size; is it a decoder-only model?",
        f"{tmp_path}/config.json gives no model_type; known are {KNOWN}",
    ]


def test_every_model_type_has_its_module(tmp_path: Path) -> None:
    for model_type in MODEL_TYPES:
        find_family(LLAMA | {"model_type": model_type}, tmp_path)


def test_a_layout_that_does_not_fit_is_refused_with_every_mistake() -> None:
    parallel = ParallelConfig(tensor_model_parallel_size=8, pipeline_model_parallel_size=3)
    with pytest.raises(ConfigError) as caught:
        check_layout(ModelShape.from_hf_config(LLAMA), parallel, source="m/config.json")
    assert str(caught.value).splitlines() == [
        "parallel.tensor_model_parallel_size: is 8, but must divide num_key_value_heads = 4 (from m/config.json)",
        "parallel.pipeline_model_parallel_size: is 3, but must divide num_layers = 4 (from m/config.json)",
    ]


def test_a_layout_that_fits_passes() -> None:
    parallel = ParallelConfig(tensor_model_parallel_size=4, pipeline_model_parallel_size=2)
    check_layout(ModelShape.from_hf_config(LLAMA), parallel, source="m/config.json")


def test_shapes_are_read_without_torch() -> None:
    code = "import sys, irpo_nemo.model_shape; assert not {'torch', 'megatron'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_vocabulary_is_padded_to_a_multiple_of_8_on_each_rank() -> None:
    assert [padded_vocab_size(45, tp_size) for tp_size in (1, 2, 4)] == [48, 48, 64]
    assert padded_vocab_size(32000, 8) == 32000


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True, which is not supported; attention_bias=False is wanted"),
        ({"mlp_bias": True}, "mlp_bias is True, which is not supported; mlp_bias=False is wanted"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not supported; hidden_act='silu' is wanted"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, which is not supported; no quant"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope scaling is 'yarn', which is not supported; known are",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "rope scaling 'llama3' lacks high_freq_factor, low_",
        ),
        ({"sliding_window": 32}, "sliding_window is 32, which is not supported; null, or"),
    ],
)
def test_an_option_that_is_not_built_is_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_family(LLAMA | option, Path("m"))
    assert str(caught.value).startswith("m/config.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3_SCALING,
        LLAMA3_SCALING | {"factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0},
    ],
)
def test_rope_frequencies_are_those_of_transformers(scaling: dict[str, Any] | None) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "default"} | (scaling or {}) | {"rope_theta": 500000.0}
    config = {key: value for key, value in LLAMA.items() if key != "model_type"} | {"head_dim": 64}
    expected = LlamaRotaryEmbedding(LlamaConfig(**config, rope_parameters=rope)).inv_freq
    found = llama.FAMILY.rope_frequencies(LLAMA | {"head_dim": 64, "rope_parameters": rope})
    torch.testing.assert_close(found, expected, atol=0.0, rtol=1e-6)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_are_those_of_transformers(model_type: str, tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = LLAMA | {"tie_word_embeddings": tied, "model_type": model_type, "sliding_window": None}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert find_family(config, Path("m")).hf_tensors(config) == expected


MEGATRON_PARAMETERS = [
    "embedding.word_embeddings.weight",
    *(
        f"decoder.layers.{layer}.{module}.weight"
        for layer in range(4)
        for module in (
            "input_layernorm",
            "self_attention.linear_qkv",
            "self_attention.linear_proj",
            "pre_mlp_layernorm",
            "mlp.linear_fc1",
            "mlp.linear_fc2",
        )
    ),
    "decoder.final_layernorm.weight",
    "output_layer.weight",
]


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_shards_cover_every_entry_once_and_norms_on_every_rank(tp_size: int) -> None:
    covered = {name: torch.zeros(shape) for name, shape in llama.FAMILY.hf_tensors(LLAMA).items()}
    for tp_rank in range(tp_size):
        for name in MEGATRON_PARAMETERS:
            for piece in llama.FAMILY.parameter_pieces(name, LLAMA, tp_rank=tp_rank, tp_size=tp_size):
                covered[piece.tensor].narrow(piece.dim, piece.start, piece.stop - piece.start).add_(1)
    for name, count in covered.items():
        assert (count == (tp_size if "norm" in name else 1)).all(), name


def test_qkv_goes_by_key_value_head() -> None:
    pieces = llama.FAMILY.parameter_pieces(
        "decoder.layers.0.self_attention.linear_qkv.weight", LLAMA, tp_rank=1, tp_size=2
    )
    rows = [(piece.tensor.split(".")[4], piece.start, piece.stop) for piece in pieces]
    assert rows == [
        *[("q_proj", 24, 36), ("k_proj", 12, 18), ("v_proj", 12, 18)],
        *[("q_proj", 36, 48), ("k_proj", 18, 24), ("v_proj", 18, 24)],
    ]


def test_a_parameter_that_llama_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"mlp\.router"):
        llama.FAMILY.parameter_pieces("decoder.layers.0.mlp.router.weight", LLAMA, tp_rank=0, tp_size=1)


TENSORS = {"a": torch.arange(12.0).view(4, 3), "b": torch.arange(5.0)}
SHAPES: dict[str, tuple[int, ...]] = {"a": (4, 3), "b": (5,)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_custom.py").write_text("raise SystemExit")
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def write_copy(source: Path, target: Path, max_shard_gib: float = 1.0, shapes: Any = None) -> None:
    writer = HFFolderWriter(target, source=source, max_shard_gib=max_shard_gib)
    for name, tensor in TENSORS.items():
        writer.add({name: tensor})
    writer.finish(shapes or SHAPES, dtype=torch.float32)


def test_slices_are_read_along_rows_and_columns(folder: Path) -> None:
    weights = HFWeights(folder, SHAPES)
    assert torch.equal(weights.read(Piece(tensor="a", start=1, stop=3)), TENSORS["a"][1:3])
    assert torch.equal(weights.read(Piece(tensor="a", start=1, stop=2, dim=1)), TENSORS["a"][:, 1:2])
    assert torch.equal(weights.read(Piece(tensor="b", start=0, stop=5)), TENSORS["b"])


def test_a_missing_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json; name a Hugging Face folder"):
        read_hf_config(tmp_path)


def test_a_missing_tensor_is_told(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks tensor c, which config\.json calls for \(1 of 3 are missing\)"):
        HFWeights(folder, SHAPES | {"c": (1,)})


def test_a_wrong_shape_is_told(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"tensor b has shape \(5,\), but config\.json calls for \(6,\)"):
        HFWeights(folder, SHAPES | {"b": (6,)})


def test_missing_weights_are_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        HFWeights(folder, SHAPES)


def test_damaged_weights_are_told(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read as safetensors"):
        HFWeights(folder, SHAPES)


def test_an_index_that_does_not_fit_its_files_is_told(folder: Path) -> None:
    index = {"weight_map": dict.fromkeys((*SHAPES, "c"), "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.safetensors: lacks tensor c, which .*index\.json says it holds"):
        HFWeights(folder, SHAPES | {"c": (1,)})
    (folder / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read as safetensors"):
        HFWeights(folder, SHAPES)


def test_a_small_model_is_one_file_with_its_configuration_and_no_code(folder: Path) -> None:
    target = folder.with_name("copy")
    write_copy(folder, target)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert read_hf_config(target) == LLAMA
    written = load_file(target / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in TENSORS.items())


def test_a_large_model_is_several_files_with_an_index(folder: Path) -> None:
    target = folder.with_name("copy")
    write_copy(folder, target, max_shard_gib=50 / 2**30)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    assert index["metadata"]["total_size"] == 17 * 4
    assert torch.equal(HFWeights(target, SHAPES).read(Piece(tensor="b", start=0, stop=5)), TENSORS["b"])


def test_an_existing_target_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already, and an export does not overwrite"):
        write_copy(folder, folder)


def test_an_export_that_does_not_read_back_never_reaches_its_place(folder: Path) -> None:
    target = folder.with_name("copy")
    with pytest.raises(ArtifactError, match=r"tensor b has shape \(5,\)"):
        write_copy(folder, target, shapes=SHAPES | {"b": (6,)})
    assert not target.exists()


def test_leftovers_of_an_interrupted_export_are_replaced(folder: Path) -> None:
    target = folder.with_name("copy")
    HFFolderWriter(target, source=folder, max_shard_gib=1.0).add(TENSORS)
    write_copy(folder, target)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["copy", "model"]


def test_fp8_needs_widths_in_sixteens_on_every_rank() -> None:
    """A rank of 2 has queries 16 wide, 48 with keys and values, and 24 feed-forward columns."""
    sizes = ModelConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, ffn_hidden_size=48)
    config = IRPOConfig(model=sizes, parallel=ParallelConfig(tensor_model_parallel_size=2))
    assert list(find_model_mistakes(config)) == []
    config.training.fp8 = "hybrid"
    assert list(find_model_mistakes(config)) == [
        "training.fp8: needs ffn_hidden_size / tensor_model_parallel_size as a multiple of 16, but it is 24 (from "
        "model); set fp8=null"
    ]
    config.model.ffn_hidden_size = 64
    assert list(find_model_mistakes(config)) == []
