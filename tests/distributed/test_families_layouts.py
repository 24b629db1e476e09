"""A Hugging Face model in Megatron is the same model in every layout: its logits, one step of training, and its export.

transformers' own models are the independent implementation. A world of 4 ranks goes through all layouts in turn;
the ranks that a layout leaves over are data parallel.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from irpo_nemo.config import ParallelConfig
from irpo_nemo.model_shape import read_hf_config
from tests.distributed.probes import gathered_logits, run_schedule
from tests.distributed.ranks import leave_layout, run_on_ranks
from tests.training import tiny

pytestmark = pytest.mark.slow

LAYOUTS = [(1, 1, 1), (2, 1, 1), (4, 1, 1), (1, 2, 1), (1, 4, 1), (2, 2, 1), (2, 2, 2)]
"""Tensor x pipeline parallel sizes, and virtual stages of a pipeline rank."""

SHAPE = tiny.SHAPE | {"max_position_embeddings": 64, "initializer_range": 0.2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MODELS: dict[str, dict[str, Any]] = {
    "untied": {"model_type": "llama"},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama3_rope": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
}
LEARNING_RATE = 0.1
BATCH, SEQ = 3, 8


def random_tokens() -> Tensor:
    return torch.randint(SHAPE["vocab_size"], (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models; beside each, by transformers: its logits, RoPE, and weights after a step of gradient descent."""
    from transformers import AutoConfig, AutoModelForCausalLM

    root = tmp_path_factory.mktemp("models")
    tokens = random_tokens()
    for name, options in MODELS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPE, **options))
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)  # norms start at 1, which would hide a mix-up
        model.save_pretrained(root / name)
        logits = model(tokens[:, :-1]).logits
        save_file({"logits": logits.detach()}, root / f"{name}.logits")
        logprobs = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
        (-logprobs.mean()).backward()
        stepped = {key: value - LEARNING_RATE * value.grad for key, value in model.named_parameters()}
        save_file({key: value.detach().contiguous() for key, value in stepped.items()}, root / f"{name}.stepped")
        frequencies = model.model.rotary_emb.inv_freq
        save_file({"inv_freq": frequencies.clone()}, root / f"{name}.rope")
    return root


@contextmanager
def layout(tp_size: int, pp_size: int, vp_size: int) -> Iterator[ParallelConfig]:
    """Megatron's groups for one layout of this world."""
    from irpo_nemo.training.parallel import initialize_parallel

    parallel = ParallelConfig(
        tensor_model_parallel_size=tp_size,
        pipeline_model_parallel_size=pp_size,
        virtual_pipeline_model_parallel_size=vp_size,
    )
    initialize_parallel(parallel, seed=0)
    yield parallel
    leave_layout()


def take_step(chunks: list[Any]) -> None:
    """One step of gradient descent on the mean token loss, through Megatron's DDP."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

    from irpo_nemo.training.batches import BatchOptions, Completion, Example, make_micro_batches, make_units

    rows = [Completion(prompt=(first,), completion=tuple(rest)) for first, *rest in random_tokens().tolist()]
    options = BatchOptions(max_tokens_per_micro_batch=10000)
    units = make_units([Example(chosen=row, rejected=None) for row in rows], options)
    (batch,) = make_micro_batches([units], options)

    def mean_loss(logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -logprobs.mean(), {}

    ddp_config = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    wrapped = [DistributedDataParallel(chunk.config, ddp_config, chunk) for chunk in chunks]
    chunks[0].config.finalize_model_grads_func = finalize_model_grads
    run_schedule(
        wrapped,
        batch.tokens,
        mean_loss,
        forward_only=False,
        positions=batch.position_ids,
        layout=batch.layout,
    )
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data -= LEARNING_RATE * parameter.main_grad


def in_every_layout(
    check: Callable[..., None], root: Path, *, layouts: Sequence[tuple[int, int, int]], models: Iterable[str]
) -> None:
    for sizes in layouts:
        with layout(*sizes) as parallel:
            for name in models:
                try:
                    check(root / name, parallel=parallel)
                except Exception as error:
                    raise AssertionError(f"{name} at {parallel}") from error


everywhere = partial(in_every_layout, layouts=LAYOUTS, models=tuple(MODELS))


def check_logits(folder: Path, *, parallel: ParallelConfig) -> None:
    from irpo_nemo.training.gpt import build_gpt_model

    chunks = build_gpt_model(folder, parallel=parallel, bf16=False)
    logits = gathered_logits(chunks, random_tokens()[:, :-1], vocab_size=read_hf_config(folder)["vocab_size"])
    if logits is not None:
        expected = load_file(folder.with_suffix(".logits"))["logits"]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0.0)


def check_rope(folder: Path, *, parallel: ParallelConfig) -> None:
    from irpo_nemo.training.gpt import build_gpt_model

    (model,) = build_gpt_model(folder, parallel=parallel, bf16=False)
    expected = load_file(folder.with_suffix(".rope"))["inv_freq"]
    torch.testing.assert_close(model.rotary_pos_emb.rotary.inv_freq, expected, atol=0.0, rtol=1e-6)


def check_round_trip(folder: Path, *, parallel: ParallelConfig, max_shard_gib: float) -> None:
    from irpo_nemo.training.families.weights import export_hf
    from irpo_nemo.training.gpt import build_gpt_model

    target = copy_of(folder, f"round_trip_{max_shard_gib}", parallel)
    chunks = build_gpt_model(folder, parallel=parallel, bf16=False)
    export_hf(chunks, source_folder=folder, target_folder=target, max_shard_gib=max_shard_gib)
    expected, found = load_folder(folder), load_folder(target)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def check_bf16(folder: Path, *, parallel: ParallelConfig) -> None:
    """A folder stored in bfloat16 goes through a bfloat16 model, and through a float32 one, unchanged."""
    from irpo_nemo.training.families.weights import export_hf
    from irpo_nemo.training.gpt import build_gpt_model

    for bf16 in (True, False):
        target = copy_of(folder, f"bf16_{bf16}", parallel)
        chunks = build_gpt_model(folder, parallel=parallel, bf16=bf16)
        assert {parameter.dtype for chunk in chunks for parameter in chunk.parameters()} == {
            torch.bfloat16 if bf16 else torch.float32
        }
        export_hf(chunks, source_folder=folder, target_folder=target)
        expected, found = load_folder(folder), load_folder(target)
        assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys(expected, torch.bfloat16)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def check_step(folder: Path, *, parallel: ParallelConfig, sequence_parallel: bool = False, **options: Any) -> None:
    from irpo_nemo.training.families.weights import export_hf
    from irpo_nemo.training.gpt import build_gpt_model

    parallel.sequence_parallel = sequence_parallel and parallel.tensor_model_parallel_size > 1
    chunks = build_gpt_model(folder, parallel=parallel, bf16=False, **options)
    take_step(chunks)
    target = copy_of(folder, f"step_{sequence_parallel}_{len(options)}", parallel)
    export_hf(chunks, source_folder=folder, target_folder=target)
    expected, found = load_file(folder.with_suffix(".stepped")), load_folder(target)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def copy_of(folder: Path, purpose: str, parallel: ParallelConfig) -> Path:
    sizes = "_".join(str(size) for size in vars(parallel).values())
    return folder.with_name(f"{folder.name}_{purpose}_{sizes}")


def load_folder(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def test_logits_equal_transformers_in_every_layout(models: Path) -> None:
    run_on_ranks(partial(everywhere, check_logits, models), 4)


def test_rope_frequencies_equal_transformers(models: Path) -> None:
    run_on_ranks(partial(in_layout, check_rope, models, (1, 1, 1)), 1)


def in_layout(check: Callable[..., None], root: Path, sizes: tuple[int, int, int]) -> None:
    with layout(*sizes) as parallel:
        for name in MODELS:
            check(root / name, parallel=parallel)


@pytest.mark.parametrize("max_shard_gib", [1.0, 1e-5])
def test_import_then_export_is_bit_for_bit_equal_in_every_layout(models: Path, max_shard_gib: float) -> None:
    check = partial(check_round_trip, max_shard_gib=max_shard_gib)
    run_on_ranks(partial(everywhere, check, models), 4)


def test_bf16_weights_survive_import_and_export(models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for name in MODELS:
        AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.bfloat16).save_pretrained(tmp_path / name)
    run_on_ranks(partial(everywhere, check_bf16, tmp_path), 4)


def test_a_step_of_training_equals_transformers_in_every_layout(models: Path) -> None:
    run_on_ranks(partial(everywhere, check_step, models), 4)


def test_sequence_parallel_changes_nothing(models: Path) -> None:
    run_on_ranks(partial(everywhere, partial(check_step, sequence_parallel=True), models), 4)


def test_recomputing_activations_changes_nothing(models: Path) -> None:
    run_on_ranks(partial(everywhere, partial(check_step, recompute_activations=True), models), 4)
