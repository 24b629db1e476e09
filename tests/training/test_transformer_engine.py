"""What is ours about Transformer Engine: where sequences begin, which modules are asked for. It runs on GPUs only."""

import torch

from irpo_nemo.config import ParallelConfig, TrainingConfig
from irpo_nemo.training.batches import BatchOptions, batch_options, examples_of_pairs, make_micro_batches, make_units
from irpo_nemo.training.layout import RowLayout
from irpo_nemo.training.transformer_engine import is_packed, thd_sequences, use_transformer_engine_linears
from tests.training.tiny import make_pairs_that_share, make_references


def unshared_layout(*, pack: bool) -> RowLayout:
    options = BatchOptions(max_tokens_per_micro_batch=10000, share_prompts=False, pack=pack)
    pairs = make_pairs_that_share(3)
    return make_micro_batches([make_units(examples_of_pairs(pairs, make_references(pairs)), options)], options)[
        0
    ].layout


def test_packed_sequences_begin_where_their_prompts_do_and_padding_is_the_last() -> None:
    layout = unshared_layout(pack=True)
    sequences = thd_sequences(layout, torch.device("cpu"))
    groups, _ = layout.segment_ids()
    lengths = torch.unique_consecutive(groups[0], return_counts=True)[1].tolist()
    places = sequences.cu_seqlens_q.tolist()
    assert places == [0, *torch.tensor(lengths).cumsum(0).tolist()]
    assert places[-1] == layout.width
    assert sequences.max_seqlen_q == max(lengths)
    assert sequences.cu_seqlens_q.dtype == torch.int32


def test_rows_of_one_sequence_are_not_packed() -> None:
    assert is_packed(unshared_layout(pack=True))
    assert not is_packed(unshared_layout(pack=False))


def test_fp8_gives_each_rank_slots_in_sixteens() -> None:
    parallel = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True, context_parallel_size=2)
    assert batch_options(TrainingConfig(fp8="hybrid", bf16=True), parallel).row_multiple == 128


def test_the_linear_layers_of_a_layer_spec_are_replaced_by_name() -> None:
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    use_transformer_engine_linears(layer)
    attention, mlp = layer.submodules.self_attention.submodules, layer.submodules.mlp
    mlp_parts = mlp.submodules if hasattr(mlp, "submodules") else mlp.keywords["submodules"]
    assert attention.linear_qkv is mlp_parts.linear_fc1 is TEColumnParallelLinear
    assert attention.linear_proj is mlp_parts.linear_fc2 is TERowParallelLinear
    again = get_gpt_layer_local_spec(normalization="RMSNorm")
    assert again.submodules.self_attention.submodules.linear_qkv is not TEColumnParallelLinear
