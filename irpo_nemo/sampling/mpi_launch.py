"""A TensorRT-LLM engine that is larger than a node: a stage under TensorRT-LLM's own launcher, `trtllm-llmapi-launch`.

    srun --mpi=pmix --kill-on-bad-exit=1 --nodes=2 --ntasks-per-node=8 \\
        bash -c "trtllm-llmapi-launch irpo stage sample CONFIG iteration=T"

One task a GPU: tensor x pipeline parallel size of them. The launcher (read in versions near 1.2.1) runs the stage as
rank 0's task, without the variables of MPI and Slurm, and beside it the leader of the ranks; every other task becomes a
rank. The engine's process, a child of the stage, finds the leader through the TLLM_ variables. A stage of
`sampler=openai_server` whose command is `trtllm-serve` is launched in the same way.

The leader waits until an engine has said goodbye. So after a stage that fails, or has nothing to draw, every GPU would
wait for ever: `ending_launch` ends the launch with it, by a signal. Whoever launches such a stage asks the run folder,
not the exit code, whether it is done.
"""

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from irpo_nemo.config import TensorRTLLMConfig
from irpo_nemo.errors import ConfigError

_LAUNCHED = "TLLM_SPAWN_PROXY_PROCESS"
_NUM_RANKS = "tllm_mpi_size"


def is_launched() -> bool:
    """Whether ranks wait for an engine of this process."""
    return os.environ.get(_LAUNCHED) == "1"


def leave_launch() -> None:
    """Call when the engine has said goodbye: the launcher ends by itself."""
    os.environ.pop(_LAUNCHED, None)


def check_launch(options: TensorRTLLMConfig) -> None:
    """Refuse an engine whose ranks nobody has started, or so many of them as it does not have.

    Raises:
        ConfigError: That is so.
    """
    size = options.tensor_parallel_size * options.pipeline_parallel_size
    nodes = options.nodes_per_engine
    if nodes > 1 and not is_launched():
        raise ConfigError(
            f"sampler.tensorrt_llm.nodes_per_engine: is {nodes}, but nothing has started the ranks of such an engine. "
            f"Start the stage with srun --mpi=pmix --nodes={nodes} --ntasks-per-node={size // nodes} "
            f"trtllm-llmapi-launch irpo stage sample ..., or set it to 1."
        )
    ranks = os.environ.get(_NUM_RANKS)
    if is_launched() and ranks != str(size):
        raise ConfigError(
            f"sampler.tensorrt_llm.tensor_parallel_size: makes {size} ranks with pipeline_parallel_size, but "
            f"trtllm-llmapi-launch was started with {ranks} tasks. Give srun --nodes={nodes} "
            f"--ntasks-per-node={size // nodes}."
        )


@contextmanager
def ending_launch() -> Iterator[None]:
    """End the launch with this process, unless an engine says goodbye within the block."""
    try:
        yield
    finally:
        if is_launched():
            atexit.register(os.killpg, 0, signal.SIGTERM)  # rank 0's task, its leader included; srun ends the others
