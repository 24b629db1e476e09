"""The GPUs of this machine, found without loading CUDA, so that each can be given to a process of its own."""

import os
import subprocess


def list_gpus() -> list[str]:
    """The visible GPUs, as CUDA_VISIBLE_DEVICES names them, found without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, line in enumerate(listing.splitlines()) if line.startswith("GPU ")]
