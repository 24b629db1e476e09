"""Memory by part: equal to Megatron's and Korthikanti's formulas where they assume the same, near published runs."""

from dataclasses import replace

import pytest

from irpo_nemo.planning.decoder import Decoder
from irpo_nemo.planning.memory import (
    GIB,
    Layout,
    activation_bytes,
    layer_activation_bytes,
    sampling_memory,
    stage_parameters,
    training_memory,
)
from irpo_nemo.training.logprobs import _CHUNK_ELEMENTS
from tests.planning.public_runs import (
    GPT_7B,
    LLAMA_3_8B,
    LLAMA_3_70B,
    MEGATRON_CI_7B_ALLOCATED,
    MEGATRON_CI_7B_LAYOUT,
    MEGATRON_CI_7B_PEAK,
    PUBLIC_RUNS,
    PublicRun,
    with_whole_logits,
)

UNTIED_8B = replace(LLAMA_3_8B, tie_word_embeddings=False)
PAPER_GPT = Decoder(
    hidden_size=12288,
    num_layers=96,
    num_attention_heads=96,
    num_key_value_heads=96,
    head_dim=128,
    ffn_hidden_size=4 * 12288,
    vocab_size=51200,
    is_gated=False,
    has_rotary_embedding=False,
    has_dropout=True,
    attention_outputs=1,
)


def megatron_states(model: Decoder, layout: Layout) -> float:
    """Weights, gradients and optimizer of the fullest rank: megatron/training/theoretical_memory_usage.py @00caa53a."""
    h, layers = model.hidden_size, model.num_layers
    attention = 2 * h * h * (1 + model.num_key_value_heads / model.num_attention_heads) * model.query_size / h
    layer = 2 * h * (model.ffn_hidden_size * (1.5 if model.is_gated else 1) + 1) + attention
    embedding = h * model.vocab_size
    fullest = ((layer * layers + h) / layout.pp + embedding) / layout.tp
    if not model.tie_word_embeddings and layout.pp == 1:
        fullest += embedding / layout.tp
    return fullest * (6 + 12 / layout.dp if layout.distributed_optimizer else 18)


@pytest.mark.parametrize("model", [LLAMA_3_8B, UNTIED_8B, LLAMA_3_70B], ids=["8B", "8B untied", "70B"])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(ranks=1),
        Layout(ranks=8),
        Layout(ranks=8, distributed_optimizer=False),
        Layout(ranks=16, tp=2),
        Layout(ranks=64, tp=8, pp=4),
    ],
    ids=["1", "dp8", "plain", "tp2", "tp8 pp4"],
)
def test_model_states_are_megatrons_formula(model: Decoder, layout: Layout) -> None:
    memory = training_memory(model, layout, micro_batches=8)
    states = memory.weights + memory.gradients + memory.optimizer
    # Megatron's divides the norms by tp, too, and spreads the final one over the stages.
    assert states == pytest.approx(megatron_states(model, layout), rel=3e-4)


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_a_layers_activations_are_korthikantis(tp: int) -> None:
    """Equations 2 and 4 of arXiv 2205.05198 without the scores: h (10 + 24 / t), or 34 h / t in sequence parallel."""
    h = PAPER_GPT.hidden_size
    assert layer_activation_bytes(PAPER_GPT, Layout(ranks=tp, tp=tp)) == h * (10 + 24 / tp)
    assert layer_activation_bytes(PAPER_GPT, Layout(ranks=tp, tp=tp, sequence_parallel=True)) == 34 * h / tp


def test_a_layer_keeps_what_is_counted_by_hand() -> None:
    """Inputs of norms and products, the QKV product, rotated Q and K, two outputs, three feed-forward products."""
    model = replace(UNTIED_8B, attention_outputs=2)
    by_hand = 8 * 4096 + 2 * (4096 + 2 * 1024) + 2 * (4096 + 1024) + 2 * 2 * 4096 + 2 * 3 * 14336
    assert layer_activation_bytes(model, Layout(ranks=1)) == by_hand


def test_a_stage_holds_a_micro_batch_for_every_stage_behind_it() -> None:
    layout = Layout(ranks=4, pp=4)
    held = [activation_bytes(UNTIED_8B, layout, stage=stage, micro_batches=8) for stage in range(4)]
    assert [value / held[3] for value in held] == [4, 3, 2, 1]
    assert activation_bytes(UNTIED_8B, layout, stage=0, micro_batches=1) == held[3]


def test_virtual_stages_hold_more_by_korthikantis_factor() -> None:
    plain, interleaved = Layout(ranks=4, pp=4), Layout(ranks=4, pp=4, vp=2)
    first, last = (
        activation_bytes(LLAMA_3_8B, interleaved, stage=stage, micro_batches=16)
        / activation_bytes(LLAMA_3_8B, plain, stage=0, micro_batches=16)
        for stage in (0, 3)
    )
    assert first == pytest.approx(1 + 3 / (4 * 2))
    assert last == pytest.approx((4 * 1 + 1) / 2 / 4)


def test_context_parallel_splits_all_but_keys_and_values_and_shards_the_optimizer() -> None:
    whole, split = Layout(ranks=8, tp=2), Layout(ranks=8, tp=2, cp=2)
    assert (whole.dp, split.dp) == (4, 2)
    kept, kept_split = (
        activation_bytes(LLAMA_3_8B, layout, stage=0, micro_batches=1) / layout.micro_batch_tokens
        for layout in (whole, split)
    )
    keys_and_values = LLAMA_3_8B.num_layers * 2 * LLAMA_3_8B.key_size * 2 / 2
    assert kept_split == pytest.approx((kept + keys_and_values) / 2)
    of_states = [training_memory(LLAMA_3_8B, layout, micro_batches=1).optimizer for layout in (whole, split)]
    assert of_states[0] == pytest.approx(of_states[1])


def test_recomputation_keeps_each_layers_input_and_one_layer() -> None:
    layout = Layout(ranks=1, recompute=True, micro_batch_tokens=1000)
    expected = 1000 * (32 * 2 * 4096 + layer_activation_bytes(UNTIED_8B, layout))
    assert activation_bytes(UNTIED_8B, layout, stage=0, micro_batches=8) == expected


def test_the_parameters_of_all_ranks_add_up() -> None:
    layout = Layout(ranks=8, tp=2, pp=4)
    ranks = sum(2 * stage_parameters(UNTIED_8B, layout, stage) for stage in range(4))
    norms_twice = (2 * 32 + 1) * 4096
    assert ranks == UNTIED_8B.num_parameters + norms_twice
    assert UNTIED_8B.num_parameters == 8_030_261_248  # what the model's card says of Llama-3-8B


def test_float32_has_no_main_weights() -> None:
    memory = training_memory(UNTIED_8B, Layout(ranks=1, bf16=False), micro_batches=1)
    assert (memory.weights, memory.gradients, memory.optimizer) == tuple(
        factor * UNTIED_8B.num_parameters for factor in (4, 4, 8)
    )


def test_the_chunk_of_logits_is_the_trainers() -> None:
    from irpo_nemo.planning.memory import LOGIT_CHUNK

    assert LOGIT_CHUNK == _CHUNK_ELEMENTS


@pytest.mark.parametrize("run", PUBLIC_RUNS, ids=lambda run: run.name)
def test_published_memory_is_within_a_fifth(run: PublicRun) -> None:
    total = with_whole_logits(run.model, run.layout, micro_batches=run.micro_batches).total
    assert total / GIB == pytest.approx(run.memory_gib, rel=0.2)


def test_megatrons_own_measurement_is_met() -> None:
    memory = with_whole_logits(GPT_7B, MEGATRON_CI_7B_LAYOUT, micro_batches=2)
    assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(MEGATRON_CI_7B_ALLOCATED, rel=0.02)
    assert memory.allocated == pytest.approx(MEGATRON_CI_7B_PEAK, rel=0.1)


def test_an_engines_cache_is_counted_by_hand() -> None:
    memory = sampling_memory(UNTIED_8B, gpus=2, gpu_bytes=80 * GIB, free_share=0.9, tokens=1000, cache_value_bytes=2)
    assert memory.weights == UNTIED_8B.num_parameters
    assert memory.cache_of_sequence == 1000 * 2 * 32 * 8 * 128 * 2 / 2
    assert memory.sequences == int(0.9 * (78 * GIB - UNTIED_8B.num_parameters) / memory.cache_of_sequence)
