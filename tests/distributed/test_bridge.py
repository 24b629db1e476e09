"""A family that megatron-bridge maps, through our model in a Megatron process; the package itself is a double."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from irpo_nemo.errors import ModelError
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_families_layouts import (
    LEARNING_RATE,
    check_logits,
    check_round_trip,
    check_step,
    in_every_layout,
    layout,
    random_tokens,
)
from tests.training.unheard_of import DOUBLE, change_config, make_llama, rename, write_unheard_of

pytestmark = pytest.mark.slow

LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1)]
"""Of 2 ranks: data, tensor, and pipeline parallel."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in both families' names; beside it, by transformers: its logits, and weights after a step."""
    root = tmp_path_factory.mktemp("models")
    tokens = random_tokens()
    for name, tied in (("untied", False), ("tied", True)):
        model = make_llama(tied=tied)
        write_unheard_of(model, root / name)
        logits = model(tokens[:, :-1]).logits
        save_file({"logits": logits.detach()}, root / f"{name}.logits")
        (-logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()).backward()
        stepped = {rename(key): value - LEARNING_RATE * value.grad for key, value in model.named_parameters()}
        save_file({key: value.detach().contiguous() for key, value in stepped.items()}, root / f"{name}.stepped")
    return root


def everywhere(check: Callable[..., None], root: Path) -> None:
    sys.path.insert(0, str(DOUBLE))
    in_every_layout(check, root, layouts=LAYOUTS, models=("untied", "tied"))


def test_logits_equal_those_of_the_same_llama(models: Path) -> None:
    run_on_ranks(partial(everywhere, check_logits, models), 2)


def test_import_then_export_is_bit_for_bit_equal(models: Path) -> None:
    run_on_ranks(partial(everywhere, partial(check_round_trip, max_shard_gib=1e-5), models), 2)
    (target,) = models.glob("untied_round_trip_1e-05_2_*")
    others = {path.name for path in target.iterdir() if path.suffix != ".safetensors"}
    assert others == {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"}


def test_a_step_of_training_equals_that_of_the_same_llama(models: Path) -> None:
    run_on_ranks(partial(everywhere, check_step, models), 2)


def refusal(folder: Path, sizes: tuple[int, int, int]) -> str | None:
    """What importing the folder is refused with."""
    from irpo_nemo.training.gpt import build_gpt_model

    sys.path.insert(0, str(DOUBLE))
    with layout(*sizes) as parallel:
        try:
            build_gpt_model(folder, parallel=parallel, bf16=False)
        except ModelError as error:
            return str(error)
    return None


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def add(folder: Path, name: str, tensor: Tensor) -> None:
    save_file(load_file(folder / "model.safetensors") | {name: tensor}, folder / "model.safetensors")


def test_what_the_package_would_leave_out_in_silence_is_refused(tmp_path: Path) -> None:
    def make(name: str, **config: Any) -> Path:
        return write_unheard_of(make_llama(tied=config.get("tie_word_embeddings", False)), tmp_path / name, **config)

    lacking, spare, forgetful = make("lacking"), make("spare"), make("forgetful", forgets=["input_layernorm.weight"])
    drop(lacking, "body.2.mlp.up")
    add(spare, "body.2.norm_3", torch.ones(32))
    for folder, message in (
        (lacking, "lacks tensor body.2.mlp.up, which megatron-bridge calls for."),
        (spare, "megatron-bridge would leave out tensor body.2.norm_3."),
        (forgetful, "megatron-bridge maps no tensor to 4 parameters of our layers."),
    ):
        assert run_on_ranks(refusal, 1, folder, (1, 1, 1)) == [f"{folder}: {message}"]


def test_an_import_that_does_not_read_back_is_refused(tmp_path: Path) -> None:
    folder = write_unheard_of(make_llama(tied=False), tmp_path / "garbled", garbles=["1.mlp.linear_fc2.weight"])
    assert run_on_ranks(refusal, 2, folder, (2, 1, 1)) == 2 * [
        f"{folder}: megatron-bridge imported tensor body.1.mlp.down other than it is (1 of 39 are)."
    ]


def test_layouts_that_the_package_gets_wrong_are_refused(tmp_path: Path) -> None:
    tied = write_unheard_of(make_llama(tied=True), tmp_path / "tied")
    assert run_on_ranks(refusal, 2, tied, (1, 2, 2)) == 2 * [
        f"{tied}/config.json: tie_word_embeddings is True, which megatron-bridge does not do with virtual stages; "
        "set parallel.virtual_pipeline_model_parallel_size=1."
    ]
    odd = write_unheard_of(make_llama(tied=False), tmp_path / "odd")
    change_config(odd, vocab_size=40)
    assert run_on_ranks(refusal, 2, odd, (2, 1, 1)) == 2 * [
        f"{odd}/config.json: vocab_size is 40, and megatron-bridge pads none; a multiple of "
        "8 x tensor_model_parallel_size = 16 is wanted."
    ]
