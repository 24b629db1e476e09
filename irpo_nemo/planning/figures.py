"""Public figures that estimates rest on, each with its source. What a user has measured goes before them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One GPU, from NVIDIA's data sheet of its SXM board."""

    memory_gib: float
    """What a process can allocate at most."""
    peak_flops: float
    """Dense bfloat16, FLOP/s; MFU is relative to it."""
    memory_bandwidth: float
    """bytes/s."""
    link_bandwidth: float
    """To the other GPUs of its node over NVLink, one direction, bytes/s."""


GPUS = {
    "A100": GPU(memory_gib=79.2, peak_flops=312e12, memory_bandwidth=2.04e12, link_bandwidth=300e9),
    "H100": GPU(memory_gib=79.2, peak_flops=989e12, memory_bandwidth=3.35e12, link_bandwidth=450e9),
    "H200": GPU(memory_gib=139.8, peak_flops=989e12, memory_bandwidth=4.8e12, link_bandwidth=450e9),
    "B200": GPU(memory_gib=178.0, peak_flops=2250e12, memory_bandwidth=8.0e12, link_bandwidth=900e9),
}
"""By the name that cluster.gpu takes."""

TRAINING_MFU = 0.225
TRAINING_MFU_SOURCE = "packed DPO of OLMo2-7B on 16 H100, allenai/open-instruct #1466"
"""The nearest public figure: preference training, packed, 6 FLOP per parameter and token."""

SAMPLING_TOKENS_PER_SECOND = 17_660
SAMPLING_PARAMETERS = 8.03e9
SAMPLING_GPU = "H100"
SAMPLING_BYTES_PER_PARAMETER = 1
SAMPLING_SOURCE = "Llama-3.1-8B in FP8 on one H100, 500 tokens in and 2000 out, TensorRT-LLM 1.0 perf-overview.md"
"""Generation reads all weights for every token, so the rate is scaled with their bytes and the memory's bandwidth. The
same page has Llama-3.3-70B on two H100 at 5222, which this scaling puts at 4017."""

FAILURE_HOURS_PER_GPU = 50_700
FAILURE_SOURCE = "419 unexpected interruptions in 54 days of 16,384 H100, Llama 3 (arXiv 2407.21783, section 3.3.4)"
"""16,384 x 54 x 24 / 419 GPU-hours between failures."""

PROBLEMS = {"gsm8k": (7473, 1319), "hendrycks_math": (7500, 5000), "arc_challenge": (3370, 1172)}
"""Training and test problems of the public data sets; ARC's training problems are Easy and Challenge together."""
