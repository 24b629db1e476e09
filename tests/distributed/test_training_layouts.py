"""Training is the same in every layout: gradients of the first step, losses of five, weights and export after them.

Pairs share prompts and completions; completions have 1 to 60 tokens, and some begin with others. References are not the
policy's (so no pair is at ln 2), and the third batch is incomplete. Each world of ranks goes through its layouts in
turn, in fp32.

How tightly: losses and gradients agree to fp32's rounding in another order of sums. Weights after five steps agree to
5e-6, and the way that they went to 2e-4: Adam divides each gradient by its own size, so an element whose gradient is
near 0 moves by up to the learning rate (1e-3) whatever that size, and rounding that is small beside the tensor's
gradient is not small beside that element's. No element is off by more than 2e-5.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from irpo_nemo.records import PreferencePair
from tests.distributed.probes import export_gradients, gathered_logits
from tests.distributed.ranks import run_on_ranks
from tests.training.tiny import SHAPE, make_config, make_model_folder, make_pairs_that_share, make_references

NUM_PAIRS = 21
MODELS = {"untied": False, "tied": True}


@dataclass(frozen=True, kw_only=True)
class Layout:
    name: str
    ranks: int = 1
    tensor: int = 1
    pipeline: int = 1
    max_tokens: int = 200
    share_prompts: bool = True
    pack: bool = True
    sequence: bool = False
    recompute: bool = False
    use_distributed_optimizer: bool = False


LAYOUTS = [
    Layout(name="one", share_prompts=False, pack=False),
    Layout(name="packed", share_prompts=False),
    Layout(name="shared", pack=False),
    Layout(name="shared_packed"),
    Layout(name="one_group_a_micro_batch", max_tokens=1),
    Layout(name="one_micro_batch", max_tokens=10000),
    Layout(name="one_distributed_optimizer", use_distributed_optimizer=True),
    Layout(name="tp2", ranks=2, tensor=2),
    Layout(name="tp2_sequence", ranks=2, tensor=2, sequence=True),
    Layout(name="tp2_sequence_recompute_padded", ranks=2, tensor=2, sequence=True, recompute=True, pack=False),
    Layout(name="recompute", recompute=True),
    Layout(name="pp2", ranks=2, pipeline=2),
    Layout(name="dp2", ranks=2),
    Layout(name="dp2_distributed_optimizer", ranks=2, use_distributed_optimizer=True),
    Layout(name="tp2_pp2", ranks=4, tensor=2, pipeline=2),
    Layout(name="tp2_dp2", ranks=4, tensor=2, use_distributed_optimizer=True),
]
"""The first, padded rows of one completion each, is what the others are compared with."""


def train_in_layouts(root: Path, layouts: list[Layout]) -> dict[str, Any]:
    """On each rank: train every model in every layout; return metrics, leave gradients and weights in folders."""
    from megatron.core import parallel_state

    metrics = {}
    for layout in layouts:
        for model in MODELS:
            metrics[f"{layout.name}/{model}"] = train(root, model, layout)
            parallel_state.destroy_model_parallel()
    return metrics


def train(root: Path, model: str, layout: Layout) -> list[dict[str, float]]:
    from megatron.core import parallel_state

    from irpo_nemo.training.parallel import data_parallel_rank
    from irpo_nemo.training.session import load_policy

    config = make_config(
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        max_tokens_per_micro_batch=layout.max_tokens,
        share_prompts=layout.share_prompts,
        pack=layout.pack,
        recompute_activations=layout.recompute,
        sequence=layout.sequence,
        use_distributed_optimizer=layout.use_distributed_optimizer,
    )
    policy = load_policy(config, config.training, root / model, num_examples=NUM_PAIRS)
    policy.prepare_for_training()
    batches = batches_of(make_pairs_that_share(NUM_PAIRS, seed=1), policy)
    metrics = []
    for step in range(5):
        policy.training_step(batches[step], step)
        metrics.append(policy.last_metrics)
        if step == 0 and not layout.use_distributed_optimizer:
            export_gradients(policy, root / layout.name / model / "gradients")
    policy.export(root / layout.name / model / "weights")
    logits = gathered_logits(list(policy.chunks), some_tokens(), vocab_size=SHAPE["vocab_size"])
    if logits is not None and data_parallel_rank() == 0 and parallel_state.get_tensor_model_parallel_rank() == 0:
        save_file({"logits": logits.contiguous()}, root / layout.name / model / "logits.safetensors")
    return metrics


def some_tokens() -> Tensor:
    return torch.randint(SHAPE["vocab_size"], (3, 64), generator=torch.Generator().manual_seed(0))


def batches_of(pairs: list[PreferencePair], policy: Any) -> Any:
    from irpo_nemo.training.batches import GlobalBatches, batch_options, examples_of_pairs
    from irpo_nemo.training.parallel import data_parallel_rank, data_parallel_size

    return GlobalBatches(
        examples_of_pairs(pairs, make_references(pairs)),
        global_batch_size=policy.options.training.global_batch_size,
        options=batch_options(policy.options.training),
        num_steps=policy.options.num_steps,
        seed=0,
        rank=data_parallel_rank(),
        ranks=data_parallel_size(),
    )


@dataclass(frozen=True)
class Trained:
    root: Path
    metrics: dict[str, list[dict[str, float]]]

    def losses(self, layout: str, model: str) -> Tensor:
        return torch.tensor([step["loss/total"] for step in self.metrics[f"{layout}/{model}"]], dtype=torch.float64)

    def tensors(self, layout: str, model: str, kind: str) -> dict[str, Tensor]:
        return load_file(self.root / layout / model / kind / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("layouts")
    for model, tied in MODELS.items():
        make_model_folder(root / model, tied=tied)
    metrics: dict[str, Any] = {}
    for ranks in (1, 2, 4):
        layouts = [layout for layout in LAYOUTS if layout.ranks == ranks]
        by_rank = run_on_ranks(train_in_layouts, ranks, root, layouts)
        assert all(other == by_rank[0] for other in by_rank[1:]), "every rank knows the same metrics"
        metrics |= by_rank[0]
    yield Trained(root, metrics)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


OTHERS = [layout.name for layout in LAYOUTS[1:]]
MODEL_NAMES = list(MODELS)


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("layout", OTHERS)
def test_losses_of_five_steps_are_the_same(trained: Trained, layout: str, model: str) -> None:
    torch.testing.assert_close(trained.losses(layout, model), trained.losses("one", model), rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("layout", OTHERS)
def test_metrics_of_the_first_step_are_the_same(trained: Trained, layout: str, model: str) -> None:
    found, expected = (trained.metrics[f"{name}/{model}"][0] for name in (layout, "one"))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("layout", [layout.name for layout in LAYOUTS[1:] if not layout.use_distributed_optimizer])
def test_every_gradient_of_the_first_step_is_the_same(trained: Trained, layout: str, model: str) -> None:
    """The distributed optimizer leaves each rank only its share of the gradient; its norm is in the metrics above."""
    found, expected = (trained.tensors(name, model, "gradients") for name in (layout, "one"))
    assert found.keys() == expected.keys()
    for name in expected:
        assert expected[name].abs().max() > 1e-4, f"{name} has a gradient"
        assert relative_error(found[name], expected[name]) < 1e-5, name
        assert largest_error(found[name], expected[name]) < 1e-5 * float(expected[name].abs().max()), name


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("layout", OTHERS)
def test_weights_after_five_steps_are_the_same(trained: Trained, layout: str, model: str) -> None:
    found, expected = (trained.tensors(name, model, "weights") for name in (layout, "one"))
    initial = load_file(trained.root / model / "model.safetensors")
    for name in expected:
        assert relative_error(found[name], expected[name]) < 5e-6, name
        assert largest_error(found[name], expected[name]) < 2e-5, name
        assert relative_error(found[name] - initial[name], expected[name] - initial[name]) < 2e-4, name


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("layout", [layout.name for layout in LAYOUTS])
def test_the_export_has_the_logits_of_the_trained_model(trained: Trained, layout: str, model: str) -> None:
    from transformers import LlamaForCausalLM

    exported = LlamaForCausalLM.from_pretrained(trained.root / layout / model / "weights")
    with torch.no_grad():
        expected = exported(some_tokens()).logits
    found = load_file(trained.root / layout / model / "logits.safetensors")["logits"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


def test_tied_embeddings_stay_one_tensor(trained: Trained) -> None:
    assert "lm_head.weight" not in trained.tensors("pp2", "tied", "weights")


def largest_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())
