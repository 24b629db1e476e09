"""Families that we have no module for, through NVIDIA's megatron-bridge where it is installed.

Asked for: its weight mapping, and its word that it knows the architecture. The model is still ours, so a family is
taken only if it is Llama's shape in all that megatron-bridge says of it, field by field; only the names and the
arrangement of its tensors are megatron-bridge's to know. The folder's own Python code never runs.

Written from the source of megatron-bridge 0.3.1; never run with the package as installed. On a CPU, what its
row-parallel mapping scatters over tensor-parallel ranks is wrong, which the comparison after an import finds.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig

from irpo_nemo.errors import ModelError
from irpo_nemo.model_shape import ModelShape, padded_vocab_size, read_hf_config
from irpo_nemo.training.families.hf_folder import HFFolderWriter, HFWeights
from irpo_nemo.training.families.llama import LlamaFamily

_CHOSEN_HERE = {
    *("init_method", "init_method_std", "output_layer_init_method", "embedding_init_method"),
    *("embedding_init_method_std", "hidden_dropout", "attention_dropout", "attention_softmax_in_fp32"),
    *("bias_activation_fusion", "bias_dropout_fusion", "masked_softmax_fusion", "apply_rope_fusion"),
    *("cross_entropy_loss_fusion", "persist_layer_norm", "memory_efficient_layer_norm", "transformer_impl"),
    *("attention_backend", "cp_comm_type", "moe_token_dispatcher_type", "use_transformer_engine_op_fuser"),
    *("seq_length", "make_vocab_size_divisible_by", "should_pad_vocab", "hf_model_id", "fp16_lm_cross_entropy"),
    *("rope_scaling", "rope_scaling_factor"),
}
"""Fields of the provider that do not say what the model is, or that `LlamaFamily` reads from config.json itself (rope
scaling). ModelParallelConfig's, layout and precision, are chosen here, too."""


@dataclass(frozen=True, kw_only=True)
class BridgedFamily(LlamaFamily):
    """A relative of Llama whose tensors megatron-bridge maps."""

    folder: Path
    bridge: Any
    """AutoBridge of the folder."""
    provider: Any
    """GPTModelProvider: how megatron-bridge would build the model."""

    def find_unsupported(self, hf_config: dict[str, Any]) -> Iterator[str]:
        """Yield what config.json or megatron-bridge asks for and our layers do not build."""
        from megatron.bridge.models.gpt_provider import GPTModelProvider

        yield from super().find_unsupported(hf_config)
        plain = {field.name: _default_of(field) for field in dataclasses.fields(GPTModelProvider)}
        vocabulary = {"vocab_size": ModelShape.from_hf_config(hf_config).vocab_size}
        wanted = plain | self.transformer_options(hf_config) | self.gpt_options(hf_config) | vocabulary
        left_out = _CHOSEN_HERE | {field.name for field in dataclasses.fields(ModelParallelConfig)}
        found = dict(vars(self.provider))  # also what is no field, but was set later
        heads = found["num_attention_heads"]
        for name, derived in {"num_query_groups": heads, "kv_channels": found["hidden_size"] // heads}.items():
            found[name] = found[name] or derived
        for name, value in found.items():
            if name not in left_out and (name not in wanted or value != wanted[name]):
                what = _show(wanted[name]) if name in wanted else "no such option"
                yield f"megatron-bridge builds it with {name}={_show(value)}, which is not supported; {what} is wanted"
        if type(self.provider).provide is not GPTModelProvider.provide:
            yield f"megatron-bridge builds it by {type(self.provider).__name__}.provide, which is not supported"

    def load_weights(self, model_chunks: Sequence[torch.nn.Module]) -> None:
        """Fill the parameters from the folder, and gather them again to compare. All ranks read all tensors.

        Raises:
            ModelError: The layout, or a tensor of the folder or parameter of the model, is none that is mapped; or
                what was filled in is not what the folder holds.
        """
        self._check_mapping(model_chunks)
        self.bridge.load_hf_weights(list(model_chunks))
        stored = HFWeights(self.folder, {})
        tensors = self.bridge.export_hf_weights(list(model_chunks), cpu=True, show_progress=False)
        right = {name for name, tensor in tensors if torch.equal(tensor, stored.read_whole(name).to(tensor.dtype))}
        if wrong := sorted(stored.names - right):
            raise ModelError(
                f"{self.folder}: megatron-bridge imported tensor {wrong[0]} other than it is "
                f"({len(wrong)} of {len(stored.names)} are)."
            )

    def export(
        self, model_chunks: Sequence[torch.nn.Module], *, target: Path, dtype: torch.dtype, max_shard_gib: float
    ) -> None:
        """Write the model as `export_hf` does: global rank 0 writes, and reads back. All ranks gather all tensors."""
        self._check_mapping(model_chunks)
        tensors = self.bridge.export_hf_weights(list(model_chunks), cpu=True, show_progress=False)
        if dist.get_rank() == 0:
            writer = HFFolderWriter(target, source=self.folder, max_shard_gib=max_shard_gib)
            for name, tensor in tensors:
                writer.add({name: tensor.to(dtype)})
            writer.finish(HFWeights(self.folder, {}).shapes, dtype=dtype)
        else:
            for _ in tensors:
                pass

    def _check_mapping(self, model_chunks: Sequence[torch.nn.Module]) -> None:
        """Refuse what megatron-bridge would skip with a warning, or get wrong. Gathers names over the pipeline."""
        shape = ModelShape.from_hf_config(read_hf_config(self.folder))
        tp_size = parallel_state.get_tensor_model_parallel_world_size()
        if padded_vocab_size(shape.vocab_size, tp_size) != shape.vocab_size:
            raise ModelError(
                f"{self.folder}/config.json: vocab_size is {shape.vocab_size}, and megatron-bridge pads none; "
                f"a multiple of 8 x tensor_model_parallel_size = {8 * tp_size} is wanted."
            )
        if shape.tie_word_embeddings and len(model_chunks) > 1:
            raise ModelError(
                f"{self.folder}/config.json: tie_word_embeddings is True, which megatron-bridge does not do with "
                "virtual stages; set parallel.virtual_pipeline_model_parallel_size=1."
            )
        tasks = self.bridge.get_conversion_tasks(list(model_chunks))
        if unknown := tasks.count(None):
            raise ModelError(f"{self.folder}: megatron-bridge maps no tensor to {unknown} parameters of our layers.")
        mapped = {name for task in tasks for name in _names(task.mapping.hf_param)}
        stored = HFWeights(self.folder, {}).names
        if missing := sorted(mapped - stored):
            raise ModelError(f"{self.folder}: lacks tensor {missing[0]}, which megatron-bridge calls for.")
        if spare := sorted(stored - mapped):
            raise ModelError(f"{self.folder}: megatron-bridge would leave out tensor {spare[0]}.")


def open_family(folder: Path) -> BridgedFamily:
    """Ask megatron-bridge for the model of `folder`. It is installed, as far as can be told without importing it.

    Raises:
        ModelError: It cannot be imported, or does not know the model.
    """
    try:
        from megatron.bridge import AutoBridge
    except ImportError as error:
        raise ModelError(f"{folder}/config.json: needs megatron-bridge, which cannot be imported ({error}).") from error
    try:
        bridge = AutoBridge.from_hf_pretrained(folder, trust_remote_code=False)
        provider = bridge.to_megatron_provider(load_weights=False)
    except ValueError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{folder}/config.json: megatron-bridge does not take this model ({reason}).") from error
    return BridgedFamily(
        qkv_bias=provider.add_qkv_bias, qk_norm=provider.qk_layernorm, folder=folder, bridge=bridge, provider=provider
    )


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _show(value: Any) -> str:
    return str(getattr(value, "__name__", repr(value)))


def _names(hf_param: str | dict[str, str]) -> list[str]:
    return [hf_param] if isinstance(hf_param, str) else [*hf_param.values()]
