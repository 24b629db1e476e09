"""Hugging Face folders to Megatron distributed checkpoints, and back: weights alone.

The checkpoint has the weights as training checkpoints have them, so `convert_to_hf` exports those as well, of whatever
layout. Under torchrun, `parallel` splits a model that one process cannot hold. torch keeps a checkpoint's index
pickled: read only checkpoints whose origin you trust.
"""

import logging
import shutil
from pathlib import Path

import torch
import torch.distributed as dist

from irpo_nemo.artifacts import explain_os_errors, publish_folder
from irpo_nemo.config import ParallelConfig
from irpo_nemo.errors import ArtifactError
from irpo_nemo.model_shape import ModelShape, read_hf_config
from irpo_nemo.training.checkpoint import load_weights, save_weights
from irpo_nemo.training.families.hf_folder import refuse_existing
from irpo_nemo.training.families.weights import export_hf
from irpo_nemo.training.gpt import build_gpt_model
from irpo_nemo.training.parallel import initialize_parallel, is_rank_zero, shutdown_parallel

logger = logging.getLogger(__name__)


def convert_to_megatron(hf_folder: Path, target: Path, *, parallel: ParallelConfig) -> None:
    """Write the weights of a Hugging Face folder as a distributed checkpoint, in the dtype of config.json.

    Raises:
        ArtifactError: The target exists.
        ModelError: The folder cannot be used.
        ConfigError: The layout does not fit the model, or the ranks.
    """
    initialize_parallel(parallel, seed=0)
    chunks = _build(hf_folder, parallel, load_weights=True)
    refuse_existing(target)
    temporary = target.with_name(f".{target.name}.partial")
    if is_rank_zero():
        with explain_os_errors(target):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    dist.barrier()
    save_weights(chunks, temporary)
    if is_rank_zero():
        publish_folder(temporary, target)
        logger.info("%s: wrote the weights of %s", target, hf_folder)
    shutdown_parallel()


def convert_to_hf(checkpoint: Path, source_folder: Path, target: Path, *, parallel: ParallelConfig) -> None:
    """Write the weights of a distributed checkpoint as a Hugging Face folder.

    Args:
        checkpoint: Of `convert_to_megatron`, or of a training run: `train/checkpoints/step_<n>`.
        source_folder: A Hugging Face folder of the same shape; gives config.json (and with it the dtype) and tokenizer.
        target: Must not exist.
        parallel: How to split the model here; the checkpoint's own layout does not matter.

    Raises:
        ArtifactError: The target exists, or the checkpoint is none, or of another model.
        ModelError: The source folder cannot be used.
        ConfigError: The layout does not fit the model, or the ranks.
    """
    if not (checkpoint / "metadata.json").is_file():
        raise ArtifactError(
            f"{checkpoint}: is not a distributed checkpoint; name a folder such as checkpoints/step_<n>"
        )
    refuse_existing(target)
    initialize_parallel(parallel, seed=0)
    chunks = _build(source_folder, parallel, load_weights=False)
    load_weights(chunks, checkpoint)
    export_hf(chunks, source_folder=source_folder, target_folder=target)
    shutdown_parallel()


def _build(hf_folder: Path, parallel: ParallelConfig, *, load_weights: bool) -> list[torch.nn.Module]:
    bf16 = ModelShape.from_hf_config(read_hf_config(hf_folder)).dtype == "bfloat16"
    return [*build_gpt_model(hf_folder, parallel=parallel, bf16=bf16, load_weights=load_weights)]
