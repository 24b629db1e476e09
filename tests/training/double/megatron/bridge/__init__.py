"""Stands in for megatron-bridge 0.3.1 where it cannot be installed: the surface that megatron_bridge_0_3_1.json
records, with the oddities that its source shows. Not collected by pytest; a rank finds it through sys.path.

It knows one family, unheard_of: Llama under other names. Its config.json may hold `provider`, what this package is to
set on the provider besides, `forgets`, the parameters that it is to have no mapping for, and `garbles`, those that it
is to import wrong.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.bridge.models.gpt_provider import GPTModelProvider, UnheardOfProvider
from megatron.core import parallel_state
from safetensors.torch import load_file
from torch import Tensor

LAYER = {
    "input_layernorm.weight": ("replicated", "norm_1"),
    "self_attention.linear_qkv.weight": ("qkv", {"q": "attention.q", "k": "attention.k", "v": "attention.v"}),
    "self_attention.linear_proj.weight": ("row", "attention.out"),
    "pre_mlp_layernorm.weight": ("replicated", "norm_2"),
    "mlp.linear_fc1.weight": ("gated", {"gate": "mlp.gate", "up": "mlp.up"}),
    "mlp.linear_fc2.weight": ("row", "mlp.down"),
}
REST = {
    "embedding.word_embeddings.weight": ("column", "words"),
    "decoder.final_layernorm.weight": ("replicated", "norm"),
    "output_layer.weight": ("column", "head"),
}


@dataclass
class Mapping:
    kind: str
    hf_param: str | dict[str, str]

    def hf_to_megatron(self, state: dict[str, Tensor], config: Any) -> Tensor:
        """This tensor-parallel rank's shard."""
        rank, size = parallel_state.get_tensor_model_parallel_rank(), config.tensor_model_parallel_size
        if isinstance(self.hf_param, str):
            whole = state[self.hf_param]
            if self.kind == "replicated":
                return whole
            return whole.chunk(size, dim=1 if self.kind == "row" else 0)[rank]
        parts = [state[name] for name in self.hf_param.values()]
        if self.kind == "gated":
            return torch.cat([part.chunk(size)[rank] for part in parts])
        by_group = [part.view(config.num_query_groups, -1, part.shape[1]) for part in parts]
        return torch.cat(by_group, dim=1).chunk(size)[rank].flatten(0, 1)

    def megatron_to_hf(self, shards: list[Tensor], config: Any) -> dict[str, Tensor]:
        """The whole tensors; views of one another, as the package's are."""
        if isinstance(self.hf_param, str):
            if self.kind == "replicated":
                return {self.hf_param: shards[0]}
            return {self.hf_param: shards[0] if len(shards) == 1 else torch.cat(shards, dim=int(self.kind == "row"))}
        if self.kind == "gated":
            gate, up = zip(*(shard.chunk(2) for shard in shards), strict=True)
            parts = (gate[0], up[0]) if len(shards) == 1 else (torch.cat(gate), torch.cat(up))
            return dict(zip(self.hf_param.values(), parts, strict=True))
        groups, dim = config.num_query_groups, config.kv_channels
        query_rows = config.num_attention_heads // groups * dim
        by_group = torch.cat(shards).view(groups, query_rows + 2 * dim, -1)
        parts = by_group.split([query_rows, dim, dim], dim=1)
        return {name: part.flatten(0, 1) for name, part in zip(self.hf_param.values(), parts, strict=True)}


@dataclass
class WeightConversionTask:
    param_name: str
    global_param_name: str
    mapping: Mapping
    param_weight: Tensor | None = None


class AutoBridge:
    def __init__(self, hf_pretrained: Path) -> None:
        self.hf_pretrained = hf_pretrained
        self.config = json.loads((hf_pretrained / "config.json").read_text())

    @classmethod
    def from_hf_pretrained(cls, path: str | Path, **kwargs: Any) -> "AutoBridge":
        assert kwargs == {"trust_remote_code": False}
        bridge = cls(Path(path))
        (architecture,) = bridge.config["architectures"]
        if architecture != "UnheardOfForCausalLM":
            raise ValueError(f"\n✗ Model architecture '{architecture}' is not yet supported\n\nModel: {path}\n")
        return bridge

    def to_megatron_provider(self, load_weights: bool = True, hf_path: str | Path | None = None) -> GPTModelProvider:
        """What the package's LlamaBridge sets."""
        assert not load_weights and hf_path is None
        config = self.config
        more = config.get("provider", {})
        provider = (UnheardOfProvider if more.pop("of_its_own", False) else GPTModelProvider)(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            num_attention_heads=config["num_attention_heads"],
            num_query_groups=config["num_key_value_heads"],
            kv_channels=config["head_dim"],
            vocab_size=config["vocab_size"],
            seq_length=config["max_position_embeddings"],
            layernorm_epsilon=config["rms_norm_eps"],
            init_method_std=config["initializer_range"],
            attention_dropout=config["attention_dropout"],
            share_embeddings_and_output_weights=config["tie_word_embeddings"],
            add_qkv_bias=config["attention_bias"],
            add_bias_linear=config["mlp_bias"],
            rotary_base=config["rope_parameters"]["rope_theta"],
            make_vocab_size_divisible_by=16,
            activation_func=F.silu,
        )
        for name in ("gated_linear_unit", "bias_activation_fusion", "masked_softmax_fusion", "persist_layer_norm"):
            setattr(provider, name, True)
        provider.bias_dropout_fusion = provider.apply_rope_fusion = True
        provider.normalization, provider.position_embedding_type = "RMSNorm", "rope"
        provider.hidden_dropout, provider.rotary_percent = 0.0, 1.0
        provider.hf_model_id = str(self.hf_pretrained)
        for name, value in more.items():
            setattr(provider, name, value)
        return provider

    def get_conversion_tasks(
        self, megatron_model: Any, hf_path: str | Path | None = None
    ) -> list[WeightConversionTask | None]:
        """One for each parameter of all stages, in an order that all ranks share; None where nothing is mapped."""
        assert hf_path is None
        local = dict(self._parameters(megatron_model))
        group = parallel_state.get_pipeline_model_parallel_group()
        gathered: list[list[str]] = [[] for _ in range(group.size())]
        dist.all_gather_object(gathered, list(local), group=group)
        names = sorted({name for of_stage in gathered for name in of_stage})
        if self.config["tie_word_embeddings"]:
            names = [name for name in names if "output_layer" not in name]
        return [self._task(name, local.get(name)) for name in names]

    def load_hf_weights(
        self,
        model: list[Any],
        hf_path: str | Path | None = None,
        allowed_mismatched_params: list[str] | None = None,
    ) -> list[Any]:
        """Parameters without a tensor in the folder keep what they have."""
        assert hf_path is None and allowed_mismatched_params is None
        state = load_file(self.hf_pretrained / "model.safetensors")
        for task in self.get_conversion_tasks(model):
            assert task is not None  # the package fails with an AttributeError
            if task.param_weight is not None and task.mapping.hf_param is not None:
                shard = task.mapping.hf_to_megatron(state, model[0].config)
                if shard.shape != task.param_weight.shape:
                    raise ValueError(f"Shape mismatch for megatron param {task.param_name}")
                if task.param_name.endswith(tuple(self.config.get("garbles", ()))):
                    shard = shard.flip(0)
                task.param_weight.data.copy_(shard)
        if self.config["tie_word_embeddings"] and parallel_state.get_pipeline_model_parallel_world_size() > 1:
            self._share_embeddings(model[0])
        return model

    def export_hf_weights(
        self,
        model: list[Any],
        cpu: bool = False,
        show_progress: bool = True,
        conversion_tasks: list[WeightConversionTask] | None = None,
        merge_adapter_weights: bool = True,
    ) -> Iterable[tuple[str, Tensor]]:
        """Whole tensors on every rank."""
        assert cpu and not show_progress and conversion_tasks is None and merge_adapter_weights
        group = parallel_state.get_pipeline_model_parallel_group()
        for task in self.get_conversion_tasks(model):
            assert task is not None
            held: list[Any] = [None] * group.size()
            dist.all_gather_object(held, task.param_weight, group=group)
            weight = next(weight for weight in (task.param_weight, *held) if weight is not None)
            shards = [weight]  # the parameter itself where there is one shard, as the package's are
            if (size := model[0].config.tensor_model_parallel_size) > 1:
                shards = [torch.empty_like(weight) for _ in range(size)]
                dist.all_gather(shards, weight.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
            yield from task.mapping.megatron_to_hf(shards, model[0].config).items()

    def _parameters(self, chunks: list[Any]) -> Iterator[tuple[str, Tensor]]:
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                if name.startswith("decoder.layers."):
                    number, rest = name.removeprefix("decoder.layers.").split(".", 1)
                    name = f"decoder.layers.{chunk.decoder.layers[int(number)].layer_number - 1}.{rest}"
                yield name, parameter

    def _task(self, name: str, weight: Tensor | None) -> WeightConversionTask | None:
        prefix, table, rest = "", REST, name
        if name.startswith("decoder.layers."):
            number, rest = name.removeprefix("decoder.layers.").split(".", 1)
            prefix, table = f"body.{number}.", LAYER
        if rest in self.config.get("forgets", ()):
            return None
        kind, tensors = table[rest]
        hf_param: Any = f"{prefix}{tensors}"
        if isinstance(tensors, dict):
            hf_param = {key: f"{prefix}{tensor}" for key, tensor in tensors.items()}
        return WeightConversionTask(name, name, Mapping(kind, hf_param), weight)

    def _share_embeddings(self, chunk: Any) -> None:
        group = parallel_state.get_embedding_group()
        ranks = dist.get_process_group_ranks(group)
        if dist.get_rank() not in ranks:
            return
        weight = chunk.shared_embedding_or_output_weight().data
        dist.broadcast(weight, src=ranks[0], group=group)
