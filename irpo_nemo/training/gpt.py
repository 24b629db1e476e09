"""Build Megatron-core's `GPTModel` from a Hugging Face folder, for this rank's place in the parallel layout.

Everything is built from Megatron's local layer spec with our attention and norm in it, so Transformer Engine and apex
are needed only where options ask for them. `parallel_state` must be initialised first, and `enable_megatron_on_cpu`
called where there is no CUDA.

Shapes: b = rows, s = slots of a row, v = vocabulary padded to a multiple of the tensor-parallel size tp.
"""

from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from irpo_nemo.config import ParallelConfig
from irpo_nemo.model_shape import ModelShape, check_layout, padded_vocab_size, read_hf_config
from irpo_nemo.training.attention import GroupAttention, RMSNorm
from irpo_nemo.training.families import Family, find_family
from irpo_nemo.training.families.weights import load_hf_weights
from irpo_nemo.training.layout import RowLayout
from irpo_nemo.training.logprobs import linear_logprobs
from irpo_nemo.training.parallel import megatron_virtual_size
from irpo_nemo.training.transformer_engine import transformer_engine_attention, use_transformer_engine_linears


def build_gpt_model(
    hf_folder: Path | str,
    *,
    parallel: ParallelConfig,
    bf16: bool,
    fp8: str | None = None,
    attention: str = "groups",
    recompute_activations: bool = False,
    load_weights: bool = True,
) -> list["PolicyGPTModel"]:
    """Build this rank's part of the model, on its CUDA device or on the CPU.

    See `PolicyGPTModel.forward` for how it is called.

    Args:
        hf_folder: config.json, and safetensors weights unless load_weights is False.
        parallel: Sizes of the groups that parallel_state was initialised with. With sequence parallel, s must be a
            multiple of tp.
        bf16: Parameters and activations in bfloat16 instead of float32.
        fp8: Format of Transformer Engine's products, as in `TrainingConfig`; None for none.
        attention: Whose, as in `TrainingConfig`.
        recompute_activations: Keep only each layer's input for backward.
        load_weights: Leave the random initialisation when False, for example to load a checkpoint over it.

    Returns:
        The model chunks of this rank, one for each virtual pipeline stage.

    Raises:
        ModelError: The folder or its model is not supported.
        ConfigError: The layout does not fit the model.
    """
    hf_config = read_hf_config(hf_folder)
    family = find_family(hf_config, Path(hf_folder))
    shape = ModelShape.from_hf_config(hf_config)
    check_layout(shape, parallel, source=f"{hf_folder}/config.json")
    config = transformer_config(
        family,
        hf_config,
        parallel=parallel,
        bf16=bf16,
        fp8=fp8,
        recompute_activations=recompute_activations,
    )
    num_chunks = parallel.virtual_pipeline_model_parallel_size
    rank, last_rank = parallel_state.get_pipeline_model_parallel_rank(), parallel.pipeline_model_parallel_size - 1
    chunks = []
    for stage in range(num_chunks):
        chunk = PolicyGPTModel(
            config=config,
            transformer_layer_spec=_block_spec(config, stage, attention),
            vocab_size=padded_vocab_size(shape.vocab_size, parallel.tensor_model_parallel_size),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=rank == 0 and stage == 0,
            post_process=rank == last_rank and stage == num_chunks - 1,
            parallel_output=True,
            vp_stage=stage if num_chunks > 1 else None,
            **family.gpt_options(hf_config),
        )
        chunk.true_vocab_size = shape.vocab_size
        chunk.rotary_pos_emb.set_frequencies(family.rope_frequencies(hf_config))
        chunks.append(chunk)
    if load_weights:
        load_hf_weights(chunks, hf_folder)
    return chunks


def transformer_config(
    family: Family,
    hf_config: dict[str, Any],
    *,
    parallel: ParallelConfig,
    bf16: bool,
    fp8: str | None = None,
    recompute_activations: bool = False,
) -> TransformerConfig:
    """Translate config.json and the layout into Megatron's configuration."""
    options = {
        **family.transformer_options(hf_config),
        **_parallel_options(parallel, bf16),
        **_kernel_options(has_cuda=torch.cuda.is_available()),
        "fp8": fp8,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    if recompute_activations:
        options |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(**options)


def _parallel_options(parallel: ParallelConfig, bf16: bool) -> dict[str, Any]:
    dtype = torch.bfloat16 if bf16 else torch.float32
    virtual_size = megatron_virtual_size(parallel)
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual_size,
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "bf16": bf16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        # Micro batches are padded to their own longest sequence, so stages tell each other the shape; but interleaved
        # ones have one shape (`BatchOptions`), since the two messages would block a schedule that overlaps them.
        "variable_seq_lengths": virtual_size is None,
        # Two stages are each other's next and previous one at once, and only overlapped messages tell these apart.
        "overlap_p2p_comm": virtual_size is not None,
        "batch_p2p_comm": virtual_size is None,
        # Megatron-core 0.16 refuses variable lengths with the default dispatcher, even for a dense model.
        "moe_token_dispatcher_type": "alltoall",
    }


def _kernel_options(*, has_cuda: bool) -> dict[str, Any]:
    """Fused kernels: those that torch compiles run on CUDA; those of apex and TransformerEngine stay off."""
    return {
        "use_cpu_initialization": not has_cuda,
        "bias_activation_fusion": has_cuda,
        "bias_dropout_fusion": has_cuda,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
    }


def _block_spec(config: TransformerConfig, stage: int, attention: str) -> TransformerBlockSubmodules:
    """Megatron's local spec with our attention, and our norm everywhere: its own final norm may be apex's."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    core_attention = GroupAttention if attention == "groups" else transformer_engine_attention()
    layer.submodules.self_attention.submodules.core_attention = core_attention
    if config.fp8:
        use_transformer_engine_linears(layer)
    if config.qk_layernorm:
        layer.submodules.self_attention.submodules.q_layernorm = RMSNorm
        layer.submodules.self_attention.submodules.k_layernorm = RMSNorm
    num_layers = get_num_layers_to_build(config, vp_stage=stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


class PolicyGPTModel(GPTModel):
    """Megatron's GPTModel over rows of groups, whose last pipeline stage answers with log-probs instead of logits."""

    true_vocab_size: int
    """Tokens that exist; Megatron's own vocab_size is padded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rotary_pos_emb = PositionedRotaryEmbedding(self.rotary_pos_emb)  # type: ignore[has-type]

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: None, *, layout: RowLayout | None = None
    ) -> Tensor:
        """Run this pipeline stage.

        Args:
            input_ids: [b, s], int64.
            position_ids: [b, s], int64.
            attention_mask: None.
            layout: Groups of the rows; None for plain causal rows, padded at their end.

        Returns:
            On the last stage the log-prob of each of the layout's tokens, [tokens] fp32, or, without a layout, logits,
            [b, s, v/tp]. Else hidden states, [s, b, h], s split where sequence or context parallel is on.
        """
        context = parallel_state.get_context_parallel_group()
        if context.size() > 1:
            assert layout is not None, "plain rows are not split over context-parallel ranks"
            layout = layout.split_context(context.rank(), context.size())
            input_ids, position_ids = input_ids[:, layout.own_slots], position_ids[:, layout.own_slots]
        self.rotary_pos_emb.layout = layout
        return super().forward(input_ids, position_ids, attention_mask, packed_seq_params=layout)

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, packed_seq_params: RowLayout | None = None, **kwargs: Any
    ) -> Tensor:
        if not self.post_process:
            return hidden_states
        if packed_seq_params is None:
            return super()._postprocess(hidden_states, *args, packed_seq_params=None, **kwargs)
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        else:
            weight = self.output_layer.weight
        if self.config.sequence_parallel:
            hidden_states = tensor_parallel.gather_from_sequence_parallel_region(hidden_states)
        if packed_seq_params.own_slots is None:
            return self._predict(hidden_states, weight, packed_seq_params.predictors, packed_seq_params.targets)
        tokens, predictors = packed_seq_params.own_predictors()
        logprobs = self._predict(hidden_states, weight, predictors, packed_seq_params.targets[tokens])
        all_logprobs = logprobs.new_zeros(packed_seq_params.targets.shape).index_copy(0, tokens, logprobs)
        return tensor_parallel.reduce_from_tensor_model_parallel_region(
            all_logprobs, group=parallel_state.get_context_parallel_group()
        )

    def _predict(self, hidden_states: Tensor, weight: Tensor, predictors: Tensor, targets: Tensor) -> Tensor:
        """The log-prob of each target under the slot that predicts it, [targets] fp32."""
        predicting = hidden_states.flatten(0, 1).index_select(0, predictors)
        if not self.config.sequence_parallel:
            predicting = tensor_parallel.copy_to_tensor_model_parallel_region(predicting)
        return linear_logprobs(
            predicting,
            weight,
            targets,
            vocab_size=self.true_vocab_size,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )


class PositionedRotaryEmbedding(torch.nn.Module):
    """Megatron's rotary embedding, by the positions of a layout instead of by slot.

    The layout is set before each forward; what this module answers then travels with the activations, so that their
    recomputation does not ask again.
    """

    def __init__(self, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.rotary = rotary
        self.layout: RowLayout | None = None

    def set_frequencies(self, frequencies: Tensor) -> None:
        """Use these radians a position instead of Megatron's, which knows fewer kinds of scaling; [head_dim / 2]."""
        self.rotary.inv_freq = frequencies.to(self.rotary.inv_freq.device)

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> int:
        """Positions that angles are needed of."""
        return self.rotary.get_rotary_seq_len(*args, **kwargs) if self.layout is None else self.layout.max_position

    def forward(self, max_seq_len: int, **options: Any) -> Tensor:
        """Angles, [s/cp, b, 1, head_dim]; without a layout Megatron's own, [s, 1, 1, head_dim]."""
        if self.layout is None:
            return self.rotary(max_seq_len, **options)
        # Megatron splits the angles of rows over context-parallel ranks, but not those of packed sequences.
        table = self.rotary(max_seq_len, **{**options, "packed_seq": True})[:, 0, 0]
        position_ids = self.layout.position_ids.t()
        if self.layout.own_slots is not None:
            position_ids = position_ids[self.layout.own_slots]
        return table[position_ids].unsqueeze(2)
