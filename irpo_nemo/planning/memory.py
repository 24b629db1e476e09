"""Memory of one GPU, by part, in training and in sampling.

Model states follow what `irpo_nemo.training` asks of Megatron's DistributedDataParallel and mixed-precision AdamW:
bfloat16 weights, gradients added up in float32, and float32 main weights with two moments, the last three sharded over
data-parallel ranks by the distributed optimizer. Activations follow Korthikanti et al. 2022 (arXiv 2205.05198,
section 4), less the attention scores, which neither FlexAttention nor FlashAttention keeps; with a gated feed-forward
layer, rotary embedding and grouped queries added. A pipeline stage holds the activations of as many micro batches as
there are stages from it to the end; of an interleaved one, as many chunks as Megatron's schedule runs ahead. Context
parallel splits the tokens of a micro batch, and the optimizer's shards go over its ranks, too. Logits are held a chunk
at a time, as `training.logprobs` does.

What it cannot know: fragments of the allocator, buffers of NCCL and workspaces of kernels; these are one guess.
"""

from dataclasses import dataclass

from irpo_nemo.planning.decoder import Decoder

GIB = 2**30

OVERHEAD_BYTES = 2 * GIB
OVERHEAD_SHARE = 0.05
"""CUDA context, NCCL's buffers and kernels' workspaces; and what the allocator cannot use."""

LOGIT_CHUNK = 2**24
"""Logits that exist at once; `training.logprobs` has the same number."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model is trained on a number of GPUs."""

    ranks: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    vp: int = 1
    """Virtual stages on each pipeline rank."""
    sequence_parallel: bool = False
    micro_batch_tokens: int = 8192
    recompute: bool = False
    bf16: bool = True
    distributed_optimizer: bool = True

    @property
    def dp(self) -> int:
        return self.ranks // (self.tp * self.pp * self.cp)

    @property
    def rank_tokens(self) -> float:
        """Tokens of a micro batch on one context-parallel rank."""
        return self.micro_batch_tokens / self.cp

    @property
    def value_bytes(self) -> int:
        """Of a weight or an activation."""
        return 2 if self.bf16 else 4


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on the GPU that needs most, while it trains."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    reference: float
    """The scoring of the reference, before there are gradients and optimizer: all it takes, not a part of the rest."""

    @property
    def allocated(self) -> float:
        """What tensors take at the peak."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def overhead(self) -> float:
        return OVERHEAD_BYTES + OVERHEAD_SHARE * self.allocated

    @property
    def total(self) -> float:
        return self.allocated + self.overhead


def training_memory(model: Decoder, layout: Layout, *, micro_batches: int) -> TrainingMemory:
    """Memory of the pipeline stage that needs most.

    Args:
        model: The policy.
        layout: How it is split.
        micro_batches: Of each rank in an optimizer step; a stage never holds more than these.
    """
    stages = range(layout.pp) if layout.pp < 3 else (0, layout.pp - 1)
    return max(
        (_stage_memory(model, layout, stage, micro_batches) for stage in stages), key=lambda memory: memory.total
    )


def _stage_memory(model: Decoder, layout: Layout, stage: int, micro_batches: int) -> TrainingMemory:
    parameters = stage_parameters(model, layout, stage)
    shards = layout.dp * layout.cp if layout.distributed_optimizer else 1
    weights = parameters * layout.value_bytes
    is_last = stage == layout.pp - 1
    logits = _logits_bytes(model, layout) if is_last else 0.0
    return TrainingMemory(
        weights=weights,
        gradients=parameters * 4,
        optimizer=parameters * (12 if layout.bf16 else 8) / shards,
        activations=activation_bytes(model, layout, stage=stage, micro_batches=micro_batches),
        logits=logits,
        reference=weights + layer_activation_bytes(model, layout) * layout.rank_tokens + logits / 2,
    )


def stage_parameters(model: Decoder, layout: Layout, stage: int) -> float:
    """Parameters of one rank of a pipeline stage. Tied embeddings stand on the first and on the last stage."""
    layers = model.num_layers / layout.pp
    number = layers * (model.layer_matrices / layout.tp + 2 * model.hidden_size)
    embedding = model.embedding_rows(layout.tp) * model.hidden_size
    if stage == 0:
        number += embedding + model.num_learned_positions * model.hidden_size
    if stage == layout.pp - 1:
        number += model.hidden_size
        number += 0 if model.tie_word_embeddings and layout.pp == 1 else embedding
    return number


def activation_bytes(model: Decoder, layout: Layout, *, stage: int, micro_batches: int) -> float:
    """What forward keeps for backward on one rank of a stage, over all micro batches in flight."""
    layers = model.num_layers / layout.pp
    ahead = float(layout.pp - stage)
    if layout.vp > 1:
        ahead = (2 * (ahead - 1) + (layout.vp - 1) * layout.pp + 1) / layout.vp
    in_flight = min(ahead, micro_batches)
    kept = layers * layer_activation_bytes(model, layout)
    if layout.recompute:
        inputs = layers * layout.value_bytes * model.hidden_size / _sequence_ways(layout)
        return layout.rank_tokens * (in_flight * inputs + layer_activation_bytes(model, layout))
    return layout.rank_tokens * in_flight * kept


def layer_activation_bytes(model: Decoder, layout: Layout) -> float:
    """What one layer keeps per token of a rank, which holds keys and values of all context-parallel ranks.

    Inputs of both norms and of both products behind them are whole on every tensor-parallel rank, unless sequence
    parallel splits them; everything between is split.
    """
    whole = 4 * model.hidden_size * layout.value_bytes
    whole += 2 * model.hidden_size if model.has_dropout else 0
    attention = model.query_size + 2 * model.key_size * layout.cp + model.attention_outputs * model.query_size
    attention += model.query_size + model.key_size if model.has_rotary_embedding else 0
    feed_forward = model.ffn_hidden_size * (3 if model.is_gated else 2)
    return whole / _sequence_ways(layout) + (attention + feed_forward) * layout.value_bytes / layout.tp


def _sequence_ways(layout: Layout) -> int:
    return layout.tp if layout.sequence_parallel else 1


def _logits_bytes(model: Decoder, layout: Layout) -> float:
    """Two chunks of logits in float32 and in the weights' type, the output layer's gradient, and its input thrice."""
    chunk = 2 * LOGIT_CHUNK * (4 + layout.value_bytes)
    weight = model.embedding_rows(layout.tp) * model.hidden_size * (4 + 2 * layout.value_bytes)
    hidden = 3 * layout.rank_tokens * model.hidden_size * layout.value_bytes
    return float(chunk + weight + hidden)


@dataclass(frozen=True, kw_only=True)
class SamplingMemory:
    """Bytes on one GPU of a sampling engine."""

    weights: float
    cache_of_sequence: float
    """Keys and values of one prompt and completion."""
    room: float
    """What is left for keys and values."""

    @property
    def sequences(self) -> int:
        """That can be generated at once."""
        return max(int(self.room / self.cache_of_sequence), 0)


def sampling_memory(
    model: Decoder, *, gpus: int, gpu_bytes: float, free_share: float, tokens: int, cache_value_bytes: int
) -> SamplingMemory:
    """Memory of an engine that splits the model over `gpus`.

    Args:
        model: M_t, in bfloat16.
        gpus: Tensor- times pipeline-parallel size of the engine.
        gpu_bytes: Memory of one of them.
        free_share: Of what the weights leave, this share holds keys and values.
        tokens: Of a prompt and its completion.
        cache_value_bytes: 2, or 1 for an FP8 cache.
    """
    weights = 2 * model.num_parameters / gpus
    cache = 2 * model.num_layers * model.key_size * cache_value_bytes * tokens / gpus
    room = max(gpu_bytes - OVERHEAD_BYTES - weights, 0) * free_share
    return SamplingMemory(weights=weights, cache_of_sequence=cache, room=room)
