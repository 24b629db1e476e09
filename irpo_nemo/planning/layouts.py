"""Which layouts a model can have on a number of GPUs, and which of those that fit is fastest."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from irpo_nemo.planning.decoder import Decoder
from irpo_nemo.planning.memory import Layout, TrainingMemory, training_memory
from irpo_nemo.planning.speed import Batch, Machine, count_micro_batches, step_seconds

MICRO_BATCH_TOKENS = (1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a layout must carry."""

    batch: Batch
    longest_micro_batch: int
    """Tokens that can come at once whatever the limit says: the longest pair."""
    memory_bytes: float
    """Of one GPU."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout and what it takes."""

    layout: Layout
    memory: TrainingMemory
    seconds: float
    """Of a step."""


def find_layout(model: Decoder, *, like: Layout, machine: Machine, demand: Demand) -> Candidate | None:
    """The fastest layout on `like.ranks` GPUs that fits; of equals the one that cuts least. None when none fits.

    Precision, the optimizer's sharding, context parallel and virtual stages stay as in `like`. A measured MFU holds for
    one layout alone, so layouts are compared by what a public one becomes in each.
    """
    machine = dataclasses.replace(machine, measured_mfu=None)
    fitting = [
        candidate
        for layout in _walk_layouts(model, like, machine)
        if (candidate := examine(model, layout, machine, demand)).memory.total <= demand.memory_bytes
    ]
    return min(fitting, key=_preference, default=None)


def _preference(candidate: Candidate) -> tuple[float, int, int]:
    layout = candidate.layout
    return candidate.seconds, layout.tp * layout.pp, -layout.micro_batch_tokens


def examine(model: Decoder, layout: Layout, machine: Machine, demand: Demand) -> Candidate:
    """Memory and step time of a layout, with the longest pair in memory."""
    fullest = dataclasses.replace(layout, micro_batch_tokens=max(layout.micro_batch_tokens, demand.longest_micro_batch))
    micro_batches = count_micro_batches(demand.batch, layout)
    return Candidate(
        layout=layout,
        memory=training_memory(model, fullest, micro_batches=micro_batches),
        seconds=step_seconds(model, layout, machine, demand.batch),
    )


def find_smallest(model: Decoder, *, like: Layout, machine: Machine, demand: Demand) -> Candidate | None:
    """The first power of two of GPUs on which a layout fits, up to 8192."""
    for power in range(14):
        ranks = dataclasses.replace(like, ranks=2**power)
        if found := find_layout(model, like=ranks, machine=machine, demand=demand):
            return found
    return None


def _walk_layouts(model: Decoder, like: Layout, machine: Machine) -> Iterator[Layout]:
    for tp in _divisors(machine.gpus_per_node):
        if any(size % tp for size in (model.num_attention_heads, model.num_key_value_heads, model.ffn_hidden_size)):
            continue
        for pp in _divisors(model.num_layers):
            if like.ranks % (tp * pp * like.cp) or model.num_layers % (pp * like.vp) or (like.vp > 1 and pp == 1):
                continue
            for tokens in MICRO_BATCH_TOKENS:
                for recompute in (False, True):
                    yield dataclasses.replace(
                        like,
                        tp=tp,
                        pp=pp,
                        sequence_parallel=tp > 1,
                        micro_batch_tokens=tokens,
                        recompute=recompute,
                    )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]
