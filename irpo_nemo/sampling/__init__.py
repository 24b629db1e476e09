"""Samplers draw completions from M_t; `parts` writes them as resumable Parquet parts.

A new sampler is a module here with `open_sampler(config, model_folder)`, and its line in `SAMPLERS`.
"""

from importlib import import_module
from pathlib import Path
from typing import cast

from irpo_nemo.config import IRPOConfig
from irpo_nemo.sampling.sampler import Completion, Sampler, SamplingRequest

__all__ = ["SAMPLERS", "Completion", "Sampler", "SamplingRequest", "open_sampler"]

SAMPLERS = {
    "transformers": "irpo_nemo.sampling.transformers",
    "openai_server": "irpo_nemo.sampling.openai_server",
    "tensorrt_llm": "irpo_nemo.sampling.tensorrt_llm",
}
"""Module of each sampler; imported when it is opened, because some packages exist only in some containers."""


def open_sampler(config: IRPOConfig, model_folder: Path) -> Sampler:
    """Load the model of a Hugging Face folder into the sampler that `sampler.name` names.

    Raises:
        ModelError: The folder cannot be loaded.
        MachineError: The sampler's package is missing.
    """
    return cast(Sampler, import_module(SAMPLERS[config.sampler.name]).open_sampler(config, model_folder))
