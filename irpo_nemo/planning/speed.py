"""Time of an optimizer step, of the reference's scoring and of sampling.

Work is counted as in metrics.jsonl: 6 FLOP per parameter and token for forward and backward, 2 for forward alone. An
MFU that was measured tells all that happens in a step. A public one does not know our layout, so then recomputation (a
forward more), the pipeline's bubble and what ranks send each other come on top; with batches of a few thousand tokens
these can be most of a step.
"""

from dataclasses import dataclass

from irpo_nemo.planning.decoder import Decoder
from irpo_nemo.planning.figures import (
    GPU,
    GPUS,
    SAMPLING_BYTES_PER_PARAMETER,
    SAMPLING_GPU,
    SAMPLING_PARAMETERS,
    SAMPLING_TOKENS_PER_SECOND,
    TRAINING_MFU,
)
from irpo_nemo.planning.memory import Layout, stage_parameters


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run takes place, and what was measured there."""

    gpu: GPU
    gpus_per_node: int
    network_bandwidth: float
    """Of one GPU to other nodes, one direction, bytes/s."""
    measured_mfu: float | None = None
    measured_sampling: float | None = None
    """Generated tokens a second, one GPU."""

    @property
    def mfu(self) -> float:
        return TRAINING_MFU if self.measured_mfu is None else self.measured_mfu


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What an optimizer step trains on, over all ranks."""

    tokens: float
    units: int
    """Pairs, or sequences: what a micro batch cannot hold a part of."""


def busy_replicas(batch: Batch, layout: Layout) -> int:
    """Data-parallel ranks that have a unit of the batch; the others wait."""
    return min(layout.dp, batch.units)


def count_micro_batches(batch: Batch, layout: Layout) -> int:
    """Of each data-parallel rank in a step: as few as fit, at most one a unit."""
    replicas = busy_replicas(batch, layout)
    by_tokens = -int(-batch.tokens // (replicas * layout.micro_batch_tokens))
    return max(min(by_tokens, -(-batch.units // replicas)), 1)


def step_seconds(model: Decoder, layout: Layout, machine: Machine, batch: Batch) -> float:
    """One optimizer step."""
    work = 6 * model.num_parameters * batch.tokens / (layout.ranks * machine.gpu.peak_flops * machine.mfu)
    if machine.measured_mfu is not None:
        return work
    replicas = busy_replicas(batch, layout)
    work *= layout.dp / replicas * (4 / 3 if layout.recompute else 1)
    work += tensor_parallel_seconds(model, layout, machine, tokens=batch.tokens / replicas)
    work += context_parallel_seconds(model, layout, machine, tokens=batch.tokens / replicas)
    return work * bubble(layout, batch) + exchange_seconds(model, layout, machine)


def bubble(layout: Layout, batch: Batch) -> float:
    """What filling and draining the pipeline multiplies a step with."""
    micro_batches = count_micro_batches(batch, layout)
    return 1 + (layout.pp - 1) / (layout.vp * micro_batches)


def tensor_parallel_seconds(model: Decoder, layout: Layout, machine: Machine, *, tokens: float) -> float:
    """All-reduce hidden states over tensor-parallel ranks: twice a layer forward, twice backward.

    `tokens` are those of one replica. Nothing hides these. Recomputation does the forward ones again. Sequence parallel
    moves the same bytes.
    """
    size = tokens / layout.cp * model.hidden_size * layout.value_bytes
    moved = 2 * size * (layout.tp - 1) / layout.tp * (6 if layout.recompute else 4)
    bandwidth = machine.gpu.link_bandwidth if layout.tp <= machine.gpus_per_node else machine.network_bandwidth
    return model.num_layers / layout.pp * moved / bandwidth


def context_parallel_seconds(model: Decoder, layout: Layout, machine: Machine, *, tokens: float) -> float:
    """Gather keys and values over context-parallel ranks: once a layer forward, and their gradients back.

    `tokens` are those of one replica. Nothing hides these. Recomputation gathers again.
    """
    size = tokens * 2 * model.key_size / layout.tp * layout.value_bytes
    moved = size * (layout.cp - 1) / layout.cp * (3 if layout.recompute else 2)
    is_one_node = layout.tp * layout.cp <= machine.gpus_per_node
    bandwidth = machine.gpu.link_bandwidth if is_one_node else machine.network_bandwidth
    return model.num_layers / layout.pp * moved / bandwidth


def exchange_seconds(model: Decoder, layout: Layout, machine: Machine) -> float:
    """Reduce gradients in float32 and gather weights over data- and context-parallel ranks, by rings, hidden behind
    nothing.

    Megatron numbers ranks by tensor, then context, then data, then pipeline parallel, so these ranks of one node are
    neighbours when they all fit there.
    """
    replicas = layout.dp * layout.cp
    is_one_node = layout.tp * replicas <= machine.gpus_per_node
    bandwidth = machine.gpu.link_bandwidth if is_one_node else machine.network_bandwidth
    moved = stage_parameters(model, layout, 0) * (4 + layout.value_bytes) * (replicas - 1) / replicas
    return moved / bandwidth


def reference_seconds(model: Decoder, layout: Layout, machine: Machine, *, tokens: float) -> float:
    """Score `tokens` tokens once, forward only; the pipeline is filled, for there are many micro batches."""
    return 2 * model.num_parameters * tokens / (layout.ranks * machine.gpu.peak_flops * machine.mfu)


def sampling_tokens_per_second(model: Decoder, machine: Machine) -> float:
    """Generated tokens a second of one GPU, bfloat16 weights."""
    if machine.measured_sampling is not None:
        return machine.measured_sampling
    known = SAMPLING_TOKENS_PER_SECOND * SAMPLING_PARAMETERS * SAMPLING_BYTES_PER_PARAMETER
    faster = machine.gpu.memory_bandwidth / GPUS[SAMPLING_GPU].memory_bandwidth
    return known * faster / (2 * model.num_parameters)
