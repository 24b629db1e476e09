"""Runs that others have published, with what they say about memory and time, and where it stands.

FlagPerf (github.com/FlagOpen/FlagPerf) trains Llamas with Megatron-core 0.6 and FlashAttention and reports memory as
nvidia-smi shows it (GiB), tokens a second of one GPU, and MFU with 6 FLOP per parameter and token. Its arguments stand
in training/benchmarks/<model>/megatron/, its results in training/nvidia/<model>-megatron/README.md. Megatron-LM's own
continuous integration reports what tensors take. Both hold all logits of a micro batch, which we do not.
"""

from dataclasses import dataclass, replace

from irpo_nemo.planning.decoder import Decoder
from irpo_nemo.planning.memory import Layout, TrainingMemory, training_memory

LLAMA_3_8B = Decoder(
    hidden_size=4096,
    num_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    ffn_hidden_size=14336,
    vocab_size=128256,
    tie_word_embeddings=True,  # Megatron's default, and no --untie-embeddings-and-output-weights is given
    attention_outputs=1,
)
LLAMA_3_70B = replace(LLAMA_3_8B, hidden_size=8192, num_layers=80, num_attention_heads=64, ffn_hidden_size=28672)
LLAMA_2_70B = replace(LLAMA_3_70B, vocab_size=32000, tie_word_embeddings=False)
GPT_7B = replace(
    LLAMA_3_8B,
    ffn_hidden_size=16384,
    vocab_size=131072,
    tie_word_embeddings=False,
    is_gated=False,
    has_rotary_embedding=False,
    num_learned_positions=8192,
    has_dropout=True,
)

FULL_LOGIT_BYTES = 12
"""Per logit of a micro batch that is held whole: bfloat16 and float32 logits, softmax, and the gradient's."""


@dataclass(frozen=True, kw_only=True)
class PublicRun:
    """One published measurement."""

    name: str
    source: str
    model: Decoder
    layout: Layout
    sequences: int
    """Of a global batch."""
    length: int
    """Tokens of a sequence; micro batches of one."""
    peak_flops: float
    mfu: float
    tokens_per_second: float
    """One GPU."""
    memory_gib: float

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def step_seconds(self) -> float:
        return self.tokens / (self.tokens_per_second * self.layout.ranks)

    @property
    def micro_batches(self) -> int:
        return self.sequences // self.layout.dp


def with_whole_logits(model: Decoder, layout: Layout, *, micro_batches: int) -> TrainingMemory:
    """Our estimate for a trainer that holds all logits; with several stages the first needs most and has none."""
    memory = training_memory(model, layout, micro_batches=micro_batches)
    if layout.pp > 1:
        return memory
    return replace(memory, logits=FULL_LOGIT_BYTES * layout.micro_batch_tokens * model.embedding_rows(layout.tp))


_LLAMA_3_8B = "FlagPerf training/nvidia/llama3_8B-megatron/README.md @0e0fc76a"
_LLAMA_3_70B = "FlagPerf training/nvidia/llama3_70B-megatron/README.md @61ac0796"
_LLAMA_2_70B = "FlagPerf training/nvidia/llama2_70B-megatron/README.md @0171acaa"

PUBLIC_RUNS = (
    PublicRun(
        name="Llama-3 8B, 8 x H100, TP2 DP4",
        source=_LLAMA_3_8B,
        model=LLAMA_3_8B,
        layout=Layout(ranks=8, tp=2, sequence_parallel=True, micro_batch_tokens=8192),
        sequences=512,
        length=8192,
        peak_flops=989e12,
        mfu=0.393,
        tokens_per_second=8103,
        memory_gib=71,
    ),
    PublicRun(
        name="Llama-3 8B, 16 x H100, TP2 DP8",
        source=_LLAMA_3_8B,
        model=LLAMA_3_8B,
        layout=Layout(ranks=16, tp=2, sequence_parallel=True, micro_batch_tokens=8192),
        sequences=512,
        length=8192,
        peak_flops=989e12,
        mfu=0.384,
        tokens_per_second=7914,
        memory_gib=62,
    ),
    PublicRun(
        name="Llama-3 8B, 8 x A800, PP2 DP4",
        source=_LLAMA_3_8B,
        model=LLAMA_3_8B,
        layout=Layout(ranks=8, pp=2, micro_batch_tokens=8192),
        sequences=512,
        length=8192,
        peak_flops=312e12,
        mfu=0.569,
        tokens_per_second=3698.7,
        memory_gib=76,
    ),
    PublicRun(
        name="Llama-3 70B, 64 x H100, TP8 PP4 DP2",
        source=_LLAMA_3_70B,
        model=LLAMA_3_70B,
        layout=Layout(ranks=64, tp=8, pp=4, sequence_parallel=True, micro_batch_tokens=8192),
        sequences=512,
        length=8192,
        peak_flops=989e12,
        mfu=0.361,
        tokens_per_second=851,
        memory_gib=55,
    ),
    PublicRun(
        name="Llama-2 70B, 32 x H800, TP8 PP4",
        source=_LLAMA_2_70B,
        model=LLAMA_2_70B,
        layout=Layout(ranks=32, tp=8, pp=4, sequence_parallel=True, micro_batch_tokens=4096),
        sequences=44,
        length=4096,
        peak_flops=989e12,
        mfu=0.272,
        tokens_per_second=641.93,
        memory_gib=62,
    ),
    PublicRun(
        name="Llama-2 70B, 32 x H800, TP4 PP8",
        source=_LLAMA_2_70B,
        model=LLAMA_2_70B,
        layout=Layout(ranks=32, tp=4, pp=8, sequence_parallel=True, micro_batch_tokens=4096),
        sequences=44,
        length=4096,
        peak_flops=989e12,
        mfu=0.336,
        tokens_per_second=791.37,
        memory_gib=74,
    ),
)


@dataclass(frozen=True, kw_only=True)
class PaperStep:
    """An iteration time with its MFU: Korthikanti et al. 2022 (arXiv 2205.05198), tables 3 and 5, "present work"."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    gpus: int
    sequences: int
    seconds: float
    mfu: float

    @property
    def model(self) -> Decoder:
        return Decoder(
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            ffn_hidden_size=4 * self.hidden_size,
            vocab_size=51200,
            tie_word_embeddings=True,
            is_gated=False,
            has_rotary_embedding=False,
            num_learned_positions=2048,
            has_dropout=True,
            attention_outputs=1,
        )


PAPER_STEPS = {
    "22B": PaperStep(
        hidden_size=6144, num_layers=48, num_attention_heads=64, gpus=8, sequences=4, seconds=1.10, mfu=0.415
    ),
    "175B": PaperStep(
        hidden_size=12288, num_layers=96, num_attention_heads=96, gpus=64, sequences=64, seconds=13.75, mfu=0.514
    ),
    "530B": PaperStep(
        hidden_size=20480, num_layers=105, num_attention_heads=128, gpus=280, sequences=280, seconds=37.83, mfu=0.560
    ),
    "1T": PaperStep(
        hidden_size=25600, num_layers=128, num_attention_heads=160, gpus=512, sequences=512, seconds=71.49, mfu=0.563
    ),
}

MEGATRON_CI_7B_LAYOUT = Layout(ranks=8, tp=4, micro_batch_tokens=16384)
MEGATRON_CI_7B_ALLOCATED = 20_663_519_232
MEGATRON_CI_7B_PEAK = 57_143_791_616
"""Bytes between steps and at the peak: NVIDIA/Megatron-LM tests/functional_tests/test_cases/gpt/
gpt3_7b_tp4_pp1_memory_speed/golden_values_dev_dgx_h100.json @09eb91e5, 8 H100."""
