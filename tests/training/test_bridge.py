"""The calls to megatron-bridge against what is recorded of 0.3.1, and what is refused before anything is built."""

import ast
import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.config import IRPOConfig, LauncherConfig, ModelConfig, SlurmConfig
from irpo_nemo.errors import ModelError
from irpo_nemo.model_shape import find_model_mistakes, read_hf_config
from irpo_nemo.training.families import bridge, find_family
from tests.training.unheard_of import DOUBLE, SHAPE

RECORDED = json.loads(Path(__file__).with_name("megatron_bridge_0_3_1.json").read_text())
NOT_KNOWN = (
    "config.json: model_type is 'unheard_of', which cannot be trained; known are llama, mistral, qwen2, qwen3; "
    "megatron-bridge would be asked about another one, but is not installed here"
)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The double, installed for one test."""
    monkeypatch.syspath_prepend(DOUBLE)
    yield importlib.import_module("megatron.bridge")
    for name in [name for name in sys.modules if name.partition("megatron.bridge")[0] == ""]:
        del sys.modules[name]
    del sys.modules["megatron"].bridge


def write_config(folder: Path, **options: Any) -> Path:
    from transformers import LlamaConfig

    config = LlamaConfig(**SHAPE).to_dict() | {
        "model_type": "unheard_of",
        "architectures": ["UnheardOfForCausalLM"],
        **options,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(folder: Path) -> list[str]:
    with pytest.raises(ModelError) as caught:
        find_family(read_hf_config(folder), folder)
    return str(caught.value).splitlines()


# --- The contract ---


def signature_of(parameters: list[dict[str, str]]) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(
                item["name"].removeprefix("**"),
                inspect.Parameter.VAR_KEYWORD
                if item["name"].startswith("**")
                else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=ast.literal_eval(item["default"]) if "default" in item else inspect.Parameter.empty,
            )
            for item in parameters
        ]
    )


def calls() -> list[tuple[str, ast.Call]]:
    """Every call of a method of AutoBridge that our module makes."""
    found = []
    for node in ast.walk(ast.parse(Path(bridge.__file__).read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) in ("AutoBridge", "bridge", "self.bridge"):
            found.append((node.func.attr, node))
    return found


def test_every_call_binds_to_the_recorded_method() -> None:
    made = calls()
    assert {name for name, _ in made} == set(RECORDED["AutoBridge"])
    for name, call in made:
        keywords = {str(keyword.arg): keyword.value for keyword in call.keywords}
        signature_of(RECORDED["AutoBridge"][name]).bind("self", *call.args, **keywords)


def test_every_import_is_recorded() -> None:
    tree = ast.parse(Path(bridge.__file__).read_text())
    imports = {
        node.module: [name.name for name in node.names]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("megatron.bridge")
    }
    assert imports == RECORDED["imports"]


def test_every_field_that_is_left_out_exists() -> None:
    """In the provider, or in the TransformerConfig that it extends."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    fields = {field.name for field in dataclasses.fields(TransformerConfig)} | set(
        RECORDED["GPTModelProvider"]["fields"]
    )
    assert fields >= bridge._CHOSEN_HERE


def test_the_double_has_the_recorded_surface(package: Any) -> None:
    for name, parameters in RECORDED["AutoBridge"].items():
        found = inspect.signature(
            inspect.getattr_static(package.AutoBridge, name).__func__
            if name.startswith("from_")
            else getattr(package.AutoBridge, name)
        )
        assert _without_types(found) == signature_of(parameters)
    assert {field.name for field in dataclasses.fields(package.WeightConversionTask)} <= set(
        RECORDED["WeightConversionTask"]
    )
    assert "hf_param" in RECORDED["MegatronParamMapping"]


def _without_types(signature: inspect.Signature) -> inspect.Signature:
    return inspect.Signature(
        [item.replace(annotation=inspect.Parameter.empty) for item in signature.parameters.values()]
    )


# --- What is refused ---


def test_without_the_package_an_unknown_family_is_refused(tmp_path: Path) -> None:
    assert refusal(write_config(tmp_path)) == [f"{tmp_path}/{NOT_KNOWN}"]


def test_without_the_package_it_is_found_before_a_run_starts(tmp_path: Path) -> None:
    config = IRPOConfig(model=ModelConfig(path=str(write_config(tmp_path))))
    assert list(find_model_mistakes(config)) == [f"model.path: {tmp_path}/{NOT_KNOWN}"]


def test_a_container_may_have_the_package(tmp_path: Path) -> None:
    launcher = LauncherConfig(name="slurm", slurm=SlurmConfig(container="pyxis"))
    config = IRPOConfig(model=ModelConfig(path=str(write_config(tmp_path))), launcher=launcher)
    assert list(find_model_mistakes(config)) == []


def test_with_the_package_a_relative_of_llama_is_taken(tmp_path: Path, package: Any) -> None:
    folder = write_config(tmp_path)
    assert list(find_model_mistakes(IRPOConfig(model=ModelConfig(path=str(folder))))) == []
    family = find_family(read_hf_config(folder), folder)
    assert isinstance(family, bridge.BridgedFamily)
    assert isinstance(family.bridge, package.AutoBridge)


@pytest.mark.usefixtures("package")
def test_a_family_that_the_package_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path, architectures=["MambaForCausalLM"])
    assert refusal(folder) == [
        f"{folder}/config.json: megatron-bridge does not take this model "
        "(✗ Model architecture 'MambaForCausalLM' is not yet supported)."
    ]


def test_a_package_that_cannot_be_imported_is_told(
    tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(package, "AutoBridge")
    (line,) = refusal(write_config(tmp_path))
    assert line.startswith(
        f"{tmp_path}/config.json: needs megatron-bridge, which cannot be imported (cannot import name"
    )


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("num_moe_experts", 8, "None"),
        ("multi_latent_attention", True, "False"),
        ("window_size", [4096, 0], "None"),
        ("softmax_scale", 0.1, "None"),
        ("softmax_type", "learnable", "'vanilla'"),
        ("normalization", "LayerNorm", "'RMSNorm'"),
        ("layernorm_zero_centered_gamma", True, "False"),
        ("position_embedding_type", "learned_absolute", "'rope'"),
        ("position_embedding_type", "yarn", "'rope'"),
        ("rotary_percent", 0.5, "1.0"),
        ("rotary_base", 500000.0, "10000.0"),
        ("rotary_interleaved", True, "False"),
        ("no_rope_freq", 4, "None"),
        ("add_bias_linear", True, "False"),
        ("gated_linear_unit", False, "True"),
        ("mtp_num_layers", 1, "None"),
        ("share_embeddings_and_output_weights", True, "False"),
        ("num_layers", 3, "4"),
        ("kv_channels", 4, "6"),
        ("num_query_groups", 8, "4"),
        ("vocab_size", 64, "48"),
        ("transformer_layer_spec", "theirs", "default_layer_spec"),
        ("attn_logit_softcapping", 50.0, "no such option"),
        ("final_logit_softcapping", 30.0, "no such option"),
    ],
)
def test_what_our_layers_do_not_build_is_refused(tmp_path: Path, name: str, value: Any, wanted: str) -> None:
    folder = write_config(tmp_path, provider={name: value})
    (line,) = refusal(folder)
    start = f"{folder}/config.json: megatron-bridge builds it with {name}={value!r}, which is not supported; {wanted}"
    assert line.startswith(start)
    assert line.endswith(" is wanted")


@pytest.mark.usefixtures("package")
def test_a_provider_that_builds_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path, provider={"of_its_own": True})
    assert refusal(folder) == [
        f"{folder}/config.json: megatron-bridge builds it by UnheardOfProvider.provide, which is not supported"
    ]


@pytest.mark.usefixtures("package")
def test_what_config_json_asks_for_is_checked_as_for_llama(tmp_path: Path) -> None:
    folder = write_config(tmp_path, hidden_act="gelu", sliding_window=16)
    assert [line.split(" is ")[0] for line in refusal(folder)] == [
        f"{folder}/config.json: hidden_act",
        f"{folder}/config.json: sliding_window",
    ]
