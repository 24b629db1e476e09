"""Weights between a Hugging Face folder and Megatron model chunks, for any tensor, pipeline and data parallel layout.

Each rank reads only the slices it owns. Export gathers one layer at a time. Which slices make a parameter is the
family's to say; both directions follow the same description, so what was read is what is written back.

Shards are [rows, ...]: this tensor-parallel rank's part of a Megatron parameter.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from irpo_nemo.errors import ModelError
from irpo_nemo.model_shape import read_hf_config
from irpo_nemo.training.families import Family, Piece, find_family
from irpo_nemo.training.families.bridge import BridgedFamily
from irpo_nemo.training.families.hf_folder import HFFolderWriter, HFWeights, refuse_existing, stored_dtype


@torch.no_grad()
def load_hf_weights(model_chunks: Sequence[torch.nn.Module], folder: Path | str) -> None:
    """Fill this rank's parameters from the folder, reading only the slices that it owns.

    No communication, unless megatron-bridge knows the family: all ranks call it.

    Args:
        model_chunks: This rank's GPTModel chunks, wrapped or not.
        folder: A Hugging Face folder of the same shape.

    Raises:
        ModelError: A file or tensor is missing or damaged, or a shape differs from config.json's or from the model's.
    """
    hf_config = read_hf_config(folder)
    family = find_family(hf_config, Path(folder))
    if isinstance(family, BridgedFamily):
        family.load_weights(model_chunks)
        return
    source = _Mapping(family, hf_config, stored_dtype(hf_config, Path(folder)))
    weights = HFWeights(folder, source.tensors)
    for name, parameter in _named_parameters(model_chunks):
        _fill(parameter, [weights.read(piece) for piece in source.pieces(name)], name, folder)


def _fill(parameter: Tensor, pieces: list[Tensor], name: str, folder: Path | str) -> None:
    rows = sum(len(piece) for piece in pieces)
    if rows > len(parameter) or any(piece.shape[1:] != parameter.shape[1:] for piece in pieces):
        shapes = ", ".join(str(tuple(piece.shape)) for piece in pieces)
        raise ModelError(f"{folder}: holds {shapes} for {name}, but the model's shard is {tuple(parameter.shape)}.")
    start = 0
    for piece in pieces:
        parameter[start : start + len(piece)].copy_(piece)
        start += len(piece)
    parameter[start:].zero_()


@torch.no_grad()
def export_hf(
    model_chunks: Sequence[torch.nn.Module],
    *,
    source_folder: Path | str,
    target_folder: Path | str,
    max_shard_gib: float = 4.0,
) -> None:
    """Write the model as a Hugging Face folder. All ranks call it; global rank 0 writes.

    The first data-parallel replica takes part: each layer is gathered to the first tensor-parallel rank of its stage,
    which sends it to global rank 0. That rank holds one layer and one unwritten file at a time. All ranks meet in a
    barrier before and after.

    Args:
        model_chunks: This rank's GPTModel chunks, wrapped or not.
        source_folder: The folder that the model was loaded from; gives config.json (and with it the dtype), tokenizer,
            generation config.
        target_folder: Must not exist.
        max_shard_gib: Largest safetensors file.

    Raises:
        ArtifactError: The target exists, or what was written does not read back.
        ModelError: The source's config.json cannot be used.
    """
    hf_config = read_hf_config(source_folder)
    family = find_family(hf_config, Path(source_folder))
    dtype = stored_dtype(hf_config, Path(source_folder))
    refuse_existing(Path(target_folder))
    dist.barrier()
    if isinstance(family, BridgedFamily):
        family.export(model_chunks, target=Path(target_folder), dtype=dtype, max_shard_gib=max_shard_gib)
    elif parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0:
        mapping = _Mapping(family, hf_config, dtype)
        layers = _gather_layers(model_chunks, mapping)
        if dist.get_rank() == 0:
            writer = HFFolderWriter(target_folder, source=source_folder, max_shard_gib=max_shard_gib)
            for tensors in layers:
                writer.add(tensors)
            writer.finish(mapping.tensors, dtype=mapping.dtype)
        else:
            for _ in layers:
                pass
    dist.barrier()


@dataclass
class _Layer:
    """What is gathered at once: the embedding, one transformer layer, or the final norm and output layer."""

    stage: int
    parameters: list[str]


class _Mapping:
    """The family's description of one model, for this rank's place in the layout."""

    def __init__(self, family: Family, hf_config: dict[str, Any], dtype: torch.dtype) -> None:
        self.hf_config = hf_config
        self.family = family
        self.dtype = dtype
        self.tensors = family.hf_tensors(hf_config)
        self.tp_rank = parallel_state.get_tensor_model_parallel_rank()
        self.tp_size = parallel_state.get_tensor_model_parallel_world_size()

    def pieces(self, name: str, tp_rank: int | None = None) -> list[Piece]:
        """The pieces of a parameter's shard on a tensor-parallel rank, this one by default."""
        tp_rank = self.tp_rank if tp_rank is None else tp_rank
        return self.family.parameter_pieces(name, self.hf_config, tp_rank=tp_rank, tp_size=self.tp_size)

    def is_sharded(self, name: str) -> bool:
        return self.tp_size > 1 and self.pieces(name, 0) != self.pieces(name, 1)

    def tensor_names(self, layer: _Layer) -> list[str]:
        """The Hugging Face tensors that a layer's parameters hold, in an order all ranks agree on."""
        return sorted({piece.tensor for name in layer.parameters for piece in self.pieces(name, 0)})


def _gather_layers(model_chunks: Sequence[torch.nn.Module], mapping: _Mapping) -> Iterator[dict[str, Tensor]]:
    """Go through the model; global rank 0 gets each layer's Hugging Face tensors, other ranks empty dictionaries."""
    local = dict(_named_parameters(model_chunks))
    group = parallel_state.get_pipeline_model_parallel_group()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    device = next(iter(local.values())).device
    for layer in _plan_layers(list(local), mapping):
        tensors: dict[str, Tensor] = {}
        if layer.stage == stage:
            shards = {name: _gather_shards(local[name], mapping, name) for name in layer.parameters}
            if mapping.tp_rank == 0:
                tensors = _assemble(shards, mapping)
        if mapping.tp_rank == 0 and layer.stage != 0:
            for name in mapping.tensor_names(layer):
                if stage == layer.stage:
                    dist.send(tensors[name], group=group, group_dst=0)
                elif stage == 0:
                    tensors[name] = torch.empty(mapping.tensors[name], dtype=mapping.dtype, device=device)
                    dist.recv(tensors[name], group=group, group_src=layer.stage)
        yield tensors if stage == 0 else {}


def _plan_layers(local_names: list[str], mapping: _Mapping) -> list[_Layer]:
    """Agree over the pipeline group which stage owns which layer, in the model's order. All-gathers once."""
    group = parallel_state.get_pipeline_model_parallel_group()
    names_by_stage: list[list[str]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(names_by_stage, local_names, group=group)
    layers: dict[int, _Layer] = {}
    exported: set[str] = set()
    for stage, names in enumerate(names_by_stage):
        for name in names:
            tensors = {piece.tensor for piece in mapping.pieces(name, 0)}
            if tensors <= exported:
                continue  # the last stage's copy of tied embeddings
            exported |= tensors
            layers.setdefault(_layer_order(name), _Layer(stage, [])).parameters.append(name)
    return [layers[order] for order in sorted(layers)]


def _layer_order(name: str) -> int:
    if match := re.match(r"decoder\.layers\.(\d+)\.", name):
        return int(match[1])
    return -1 if name.startswith("embedding.") else 2**31


def _gather_shards(shard: Tensor, mapping: _Mapping, name: str) -> list[Tensor]:
    """Gather a parameter's shards, in the export's dtype, to the first rank of the tensor-parallel group."""
    shard = shard.detach().to(mapping.dtype).contiguous()
    if not mapping.is_sharded(name):
        return [shard]
    is_first = mapping.tp_rank == 0
    shards = [torch.empty_like(shard) for _ in range(mapping.tp_size)] if is_first else None
    dist.gather(shard, shards, group=parallel_state.get_tensor_model_parallel_group(), group_dst=0)
    return shards or []


def _assemble(shards: Mapping[str, list[Tensor]], mapping: _Mapping) -> dict[str, Tensor]:
    """Cut the shards of a layer's parameters into pieces and put each into its place of a whole Hugging Face tensor."""
    tensors: dict[str, Tensor] = {}
    for name, parameter_shards in shards.items():
        for tp_rank, shard in enumerate(parameter_shards):
            start = 0
            for piece in mapping.pieces(name, tp_rank):
                if piece.tensor not in tensors:
                    tensors[piece.tensor] = shard.new_empty(mapping.tensors[piece.tensor])
                rows = (piece.stop - piece.start) if piece.dim == 0 else len(shard)
                place = tensors[piece.tensor].narrow(piece.dim, piece.start, piece.stop - piece.start)
                place.copy_(shard[start : start + rows])
                start += rows
    return tensors


def _named_parameters(model_chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """This rank's parameters, with layers numbered from the first layer of the whole model."""
    for chunk in model_chunks:
        model = _unwrap(chunk)
        for name, parameter in model.named_parameters():
            if match := re.match(r"decoder\.layers\.(\d+)\.(.*)", name):
                layer = model.decoder.layers[int(match[1])].layer_number - 1
                name = f"decoder.layers.{layer}.{match[2]}"
            yield name, parameter


def _unwrap(chunk: Any) -> Any:
    while not hasattr(chunk, "decoder"):
        chunk = chunk.module
    return chunk
