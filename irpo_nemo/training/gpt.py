"""Build Megatron-core's `GPTModel` from a Hugging Face folder, for this rank's place in the parallel layout.

Everything is built from Megatron's local layer spec with our attention and norm in it, so TransformerEngine and apex
are not needed. `parallel_state` must be initialised first, and `enable_megatron_on_cpu` called where there is no CUDA.

Shapes: b = sequences, s = positions, v = vocabulary padded to a multiple of the tensor-parallel size tp.
"""

from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from irpo_nemo.config import ParallelConfig
from irpo_nemo.model_shape import ModelShape, check_layout, padded_vocab_size, read_hf_config
from irpo_nemo.training.attention import CausalAttention, RMSNorm
from irpo_nemo.training.families import Family, find_family
from irpo_nemo.training.families.weights import load_hf_weights


def build_gpt_model(
    hf_folder: Path | str,
    *,
    parallel: ParallelConfig,
    bf16: bool,
    sequence_parallel: bool = False,
    recompute_activations: bool = False,
    load_weights: bool = True,
) -> list[GPTModel]:
    """Build this rank's part of the model, on its CUDA device or on the CPU.

    Call forward with (input_ids, position_ids, attention_mask=None) on right-padded batches [b, s]; the last pipeline
    stage answers with logits [b, s, v/tp].

    Args:
        hf_folder: config.json, and safetensors weights unless load_weights is False.
        parallel: Sizes of the groups that parallel_state was initialised with.
        bf16: Parameters and activations in bfloat16 instead of float32.
        sequence_parallel: Split activations between layers along the sequence; s must be a multiple of tp, and tp more
            than 1.
        recompute_activations: Keep only each layer's input for backward.
        load_weights: Leave the random initialisation when False, for example to load a checkpoint over it.

    Returns:
        The model chunks of this rank: one, until virtual pipeline stages are used.

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
        sequence_parallel=sequence_parallel,
        recompute_activations=recompute_activations,
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=_block_spec(config),
        vocab_size=padded_vocab_size(shape.vocab_size, parallel.tensor_model_parallel_size),
        max_sequence_length=shape.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        **family.gpt_options(hf_config),
    )
    if load_weights:
        load_hf_weights([model], hf_folder)
    return [model]


def transformer_config(
    family: Family,
    hf_config: dict[str, Any],
    *,
    parallel: ParallelConfig,
    bf16: bool,
    sequence_parallel: bool = False,
    recompute_activations: bool = False,
) -> TransformerConfig:
    """Translate config.json and the layout into Megatron's configuration."""
    options = {
        **family.transformer_options(hf_config),
        **_parallel_options(parallel, bf16, sequence_parallel),
        **_kernel_options(has_cuda=torch.cuda.is_available()),
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    if recompute_activations:
        options |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(**options)


def _parallel_options(parallel: ParallelConfig, bf16: bool, sequence_parallel: bool) -> dict[str, Any]:
    dtype = torch.bfloat16 if bf16 else torch.float32
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "sequence_parallel": sequence_parallel,
        "bf16": bf16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        # Micro batches are padded to their own longest sequence, so stages tell each other the shape.
        "variable_seq_lengths": True,
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


def _block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """Megatron's local spec with our attention, and our norm everywhere: its own final norm may be apex's."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = CausalAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)
