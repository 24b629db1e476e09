"""Training is the same in every layout: gradients of the first step, losses of five, weights and export after them.

Pairs share prompts and completions; completions have 1 to 60 tokens, and some begin with others. References are not the
policy's (so no pair is at ln 2), and the third batch is incomplete. Each world of ranks goes through its layouts in
turn, in fp32.

How tightly: losses and gradients agree to fp32's rounding in another order of sums. Weights after five steps agree to
5e-6, and the way that they went to 2e-4: Adam divides each gradient by its own size, so an element whose gradient is
near 0 moves by up to the learning rate (1e-3) whatever that size, and rounding that is small beside the tensor's
gradient is not small beside that element's. Adam's epsilon stands above that rounding, so that no element is off by
more than 2e-5.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.distributed.probes import export_gradients, gathered_logits
from tests.distributed.ranks import leave_layout, run_on_ranks
from tests.training.tiny import SHAPE, make_config, make_model_folder, make_pairs_that_share, make_references

NUM_PAIRS = 21


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and its data."""

    tied: bool = False
    order: str = "shuffled"
    seed: int = 1
    prompt_lengths: tuple[int, ...] = (1, 3, 12, 30)


CASES = {
    "untied": Case(),
    "tied_by_problem": Case(tied=True, order="by_problem", seed=2),
    "long_prompts": Case(prompt_lengths=(3, 70, 300, 900)),
}
SHORT = ("untied", "tied_by_problem")
ONE = ("untied",)


@dataclass(frozen=True, kw_only=True)
class Layout:
    name: str
    cases: tuple[str, ...] = tuple(CASES)
    ranks: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    context: int = 1
    max_tokens: int = 200
    share_prompts: bool = True
    pack: bool = True
    sequence: bool = False
    recompute: bool = False
    overlap: bool | None = None
    use_distributed_optimizer: bool = False


ALONE: dict[str, Any] = {"share_prompts": False, "pack": False}
"""Each completion behind its own prompt, in a row of its own."""
TP2: dict[str, Any] = {"ranks": 2, "tensor": 2}
PP2: dict[str, Any] = {"ranks": 2, "pipeline": 2}
INTERLEAVED: dict[str, Any] = {"ranks": 2, "pipeline": 2, "virtual": 2}
CP2: dict[str, Any] = {"ranks": 2, "context": 2}
TP2_PP2: dict[str, Any] = {"ranks": 4, "tensor": 2, "pipeline": 2}

LAYOUTS = [
    Layout(name="one", **ALONE),
    Layout(name="packed", share_prompts=False),
    Layout(name="shared", pack=False),
    Layout(name="shared_packed"),
    Layout(name="one_group_a_micro_batch", cases=SHORT, max_tokens=1),
    Layout(name="one_micro_batch", max_tokens=10000),
    Layout(name="one_distributed_optimizer", cases=ONE, use_distributed_optimizer=True),
    Layout(name="recompute", cases=SHORT, recompute=True),
    Layout(name="tp2", cases=SHORT, **TP2),
    Layout(name="tp2_sequence", **TP2, sequence=True),
    Layout(name="tp2_sequence_alone", cases=ONE, **TP2, **ALONE, sequence=True),
    Layout(name="tp2_sequence_recompute_padded", cases=SHORT, **TP2, sequence=True, recompute=True, pack=False),
    Layout(name="pp2", **PP2),
    Layout(name="pp2_alone", cases=ONE, **PP2, **ALONE),
    Layout(name="pp2_virtual2", **INTERLEAVED),
    Layout(name="pp2_virtual2_alone", cases=ONE, **INTERLEAVED, **ALONE),
    Layout(name="pp2_virtual2_one_micro_batch", cases=SHORT, **INTERLEAVED, max_tokens=10000),
    Layout(name="cp2", **CP2),
    Layout(name="cp2_alone", cases=ONE, **CP2, **ALONE),
    Layout(name="cp2_recompute_packed", cases=ONE, **CP2, recompute=True, share_prompts=False),
    Layout(name="dp2", ranks=2),
    Layout(name="dp2_alone", cases=ONE, ranks=2, **ALONE),
    Layout(name="dp2_overlap", cases=SHORT, ranks=2, overlap=True),
    Layout(name="dp2_distributed_optimizer", cases=SHORT, ranks=2, use_distributed_optimizer=True),
    Layout(
        name="dp2_distributed_optimizer_overlap", cases=SHORT, ranks=2, use_distributed_optimizer=True, overlap=True
    ),
    Layout(name="tp2_pp2", cases=SHORT, **TP2_PP2),
    Layout(name="tp2_pp2_alone", cases=ONE, **TP2_PP2, **ALONE),
    Layout(name="tp2_dp2", cases=ONE, ranks=4, tensor=2, use_distributed_optimizer=True),
    Layout(name="tp2_sequence_cp2", cases=SHORT, ranks=4, tensor=2, context=2, sequence=True),
    Layout(name="cp2_dp2", cases=ONE, ranks=4, context=2, use_distributed_optimizer=True),
    Layout(name="pp2_cp2", cases=ONE, ranks=4, pipeline=2, context=2),
    Layout(
        name="pp2_virtual2_dp2_overlap",
        cases=SHORT,
        ranks=4,
        pipeline=2,
        virtual=2,
        use_distributed_optimizer=True,
        overlap=True,
    ),
]
"""The first, padded rows of one completion each, is what the others are compared with."""


def train_in_layouts(root: Path, layouts: list[Layout]) -> dict[str, Any]:
    """On each rank: train every case in every layout; return metrics, leave gradients and weights in folders."""
    metrics = {}
    for layout in layouts:
        for case in layout.cases:
            metrics[f"{layout.name}/{case}"] = train(root, case, layout)
        leave_layout()
    return metrics


def train(root: Path, case: str, layout: Layout) -> list[dict[str, float]]:
    from megatron.core import parallel_state

    from irpo_nemo.training.parallel import data_parallel_rank
    from irpo_nemo.training.session import load_policy

    config = make_config(
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        virtual=layout.virtual,
        context=layout.context,
        max_tokens_per_micro_batch=layout.max_tokens,
        share_prompts=layout.share_prompts,
        pack=layout.pack,
        order=CASES[case].order,
        recompute_activations=layout.recompute,
        sequence=layout.sequence,
        overlap=layout.overlap,
        optimizer={"adam_eps": 1e-6},
        use_distributed_optimizer=layout.use_distributed_optimizer,
    )
    policy = load_policy(config, config.training, root / case, num_examples=NUM_PAIRS)
    policy.prepare_for_training()
    batches = batches_of(CASES[case], policy)
    metrics = []
    for step in range(5):
        policy.training_step(batches[step], step)
        metrics.append(policy.last_metrics)
        if step == 0 and not layout.use_distributed_optimizer:
            export_gradients(policy, root / layout.name / case / "gradients")
    policy.export(root / layout.name / case / "weights")
    if layout.context > 1:
        return metrics  # plain rows, which logits are of, are not split over context-parallel ranks
    logits = gathered_logits(list(policy.chunks), some_tokens(), vocab_size=SHAPE["vocab_size"])
    if logits is not None and data_parallel_rank() == 0 and parallel_state.get_tensor_model_parallel_rank() == 0:
        save_file({"logits": logits.contiguous()}, root / layout.name / case / "logits.safetensors")
    return metrics


def some_tokens() -> Tensor:
    return torch.randint(SHAPE["vocab_size"], (3, 64), generator=torch.Generator().manual_seed(0))


def batches_of(case: Case, policy: Any) -> Any:
    from irpo_nemo.training.batches import GlobalBatches, batch_options, examples_of_pairs
    from irpo_nemo.training.parallel import data_parallel_rank, data_parallel_size

    pairs = make_pairs_that_share(NUM_PAIRS, case.seed, case.prompt_lengths)
    return GlobalBatches(
        examples_of_pairs(pairs, make_references(pairs)),
        global_batch_size=policy.options.training.global_batch_size,
        options=batch_options(policy.options.training, policy.options.parallel),
        num_steps=policy.options.num_steps,
        seed=0,
        rank=data_parallel_rank(),
        ranks=data_parallel_size(),
        order=case.order,
    )


@dataclass(frozen=True)
class Trained:
    root: Path
    metrics: dict[str, list[dict[str, float]]]

    def losses(self, layout: str, case: str) -> Tensor:
        return torch.tensor([step["loss/total"] for step in self.metrics[f"{layout}/{case}"]], dtype=torch.float64)

    def tensors(self, layout: str, case: str, kind: str) -> dict[str, Tensor]:
        return load_file(self.root / layout / case / kind / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("layouts")
    for name, case in CASES.items():
        make_model_folder(root / name, tied=case.tied, max_positions=max(case.prompt_lengths) + 64)
    metrics: dict[str, Any] = {}
    for ranks in (1, 2, 4):
        layouts = [layout for layout in LAYOUTS if layout.ranks == ranks]
        by_rank = run_on_ranks(train_in_layouts, ranks, root, layouts, timeout_seconds=600.0)
        assert all(other == by_rank[0] for other in by_rank[1:]), "every rank knows the same metrics"
        metrics |= by_rank[0]
    yield Trained(root, metrics)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


OTHERS = [(layout.name, case) for layout in LAYOUTS[1:] for case in layout.cases]


@pytest.mark.parametrize(("layout", "case"), OTHERS)
def test_losses_of_five_steps_are_the_same(trained: Trained, layout: str, case: str) -> None:
    torch.testing.assert_close(trained.losses(layout, case), trained.losses("one", case), rtol=2e-6, atol=0.0)


@pytest.mark.parametrize(("layout", "case"), OTHERS)
def test_metrics_of_the_first_step_are_the_same(trained: Trained, layout: str, case: str) -> None:
    found, expected = (trained.metrics[f"{name}/{case}"][0] for name in (layout, "one"))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("layout", "case"),
    [(layout.name, case) for layout in LAYOUTS[1:] for case in layout.cases if not layout.use_distributed_optimizer],
)
def test_every_gradient_of_the_first_step_is_the_same(trained: Trained, layout: str, case: str) -> None:
    """The distributed optimizer leaves each rank only its share of the gradient; its norm is in the metrics above."""
    found, expected = (trained.tensors(name, case, "gradients") for name in (layout, "one"))
    assert found.keys() == expected.keys()
    for name in expected:
        assert expected[name].abs().max() > 1e-4, f"{name} has a gradient"
        assert relative_error(found[name], expected[name]) < 1e-5, name
        assert largest_error(found[name], expected[name]) < 1e-5 * float(expected[name].abs().max()), name


@pytest.mark.parametrize(("layout", "case"), OTHERS)
def test_weights_after_five_steps_are_the_same(trained: Trained, layout: str, case: str) -> None:
    found, expected = (trained.tensors(name, case, "weights") for name in (layout, "one"))
    initial = load_file(trained.root / case / "model.safetensors")
    for name in expected:
        assert relative_error(found[name], expected[name]) < 5e-6, name
        assert largest_error(found[name], expected[name]) < 2e-5, name
        assert relative_error(found[name] - initial[name], expected[name] - initial[name]) < 2e-4, name


@pytest.mark.parametrize(
    ("layout", "case"), [(layout.name, case) for layout in LAYOUTS for case in layout.cases if layout.context == 1]
)
def test_the_export_has_the_logits_of_the_trained_model(trained: Trained, layout: str, case: str) -> None:
    from transformers import LlamaForCausalLM

    exported = LlamaForCausalLM.from_pretrained(trained.root / layout / case / "weights")
    with torch.no_grad():
        expected = exported(some_tokens()).logits
    found = load_file(trained.root / layout / case / "logits.safetensors")["logits"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


def test_tied_embeddings_stay_one_tensor(trained: Trained) -> None:
    assert "lm_head.weight" not in trained.tensors("pp2", "tied_by_problem", "weights")


def largest_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())
