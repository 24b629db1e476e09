"""How engines and servers are started: in an environment without the launcher's MPI or Slurm world, through bash, and
so that they end when the process that needs them does.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_FOREIGN_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "SLURM_", "MPI_", "UCX_", "I_MPI_", "HYDRA_", "MPICH_", "MV2_", "CRAY_")
"""What mpi4py would take for a world to join: the list of TensorRT-LLM's own launcher, less KMP_, which is OpenMP's."""
_OWN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OWN_PREFIX = "IRPO_"
_GUARDIAN = Path(__file__).with_name("guardian.py")


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what belongs to the process that starts the child, and to that one alone."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith((*_FOREIGN_PREFIXES, _OWN_PREFIX)) and name not in _OWN_VARIABLES
    }


def through_bash(command: Sequence[str]) -> list[str]:
    """`command` under a guardian that outlives neither side, started by bash.

    NVIDIA's TensorRT-LLM image completes LD_LIBRARY_PATH in the file that BASH_ENV names, which only bash reads.
    """
    guarded = [sys.executable, "-I", str(_GUARDIAN), str(os.getpid()), *command]
    bash = shutil.which("bash")
    return [bash, "-c", 'exec "$@"', "bash", *guarded] if bash else guarded


def kill_group(pid: int, signum: int) -> None:
    """Send a signal to every process of the group; one that is gone is no matter."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)
