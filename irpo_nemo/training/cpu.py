"""Let Megatron-core run on a machine without CUDA, over gloo: its real schedules, optimizers and checkpoints.

Megatron-core 0.16 to 0.19 names the CUDA device outright in its schedules, buffers and optimizers.
`enable_megatron_on_cpu` answers those calls with the CPU. It knows nothing of models. What it cannot mend belongs to
the configuration: fusions off, dropout 0 (`irpo_nemo.training.gpt`), gradient overlap off.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_enabled = False


def enable_megatron_on_cpu() -> None:
    """Make this process answer Megatron's CUDA calls with the CPU.

    Does nothing where CUDA is available, or when called again. Call it in the thread that trains, before groups and
    models are built: torch keeps the mode below per thread (backward on a CPU runs in the caller's thread).
    """
    global _enabled
    if _enabled or torch.cuda.is_available():
        return
    _enabled = True
    _replace_cuda_queries()
    _replace_rng_states()
    _CudaMeansCpu().__enter__()


class _CudaMeansCpu(TorchFunctionMode):
    """Redirects torch functions that schedules, gradient buffers and optimizers call with device="cuda"."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The optimizers sort parameters by comparing type() with 'torch.cuda.FloatTensor'.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
            kwargs.pop("pin_memory", None)
        return func(*args, **kwargs)


def _names_cuda(device: Any) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _IdleStream:
    """The stream of a device that runs nothing asynchronously."""

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...


def _replace_cuda_queries() -> None:
    # device=torch.cuda.current_device() is how the tensor-parallel layers and collectives place their buffers.
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]
    # Point-to-point communication, timers and checkpoints synchronize with a device that is not there.
    torch.cuda.synchronize = lambda *_: None
    # Gradient buckets (0.18 and later) order their reduction after the current stream.
    torch.cuda.current_stream = lambda *_: _IdleStream()  # type: ignore[assignment]
    torch.cuda.default_stream = lambda *_: _IdleStream()  # type: ignore[assignment]


def _replace_rng_states() -> None:
    from megatron.core.tensor_parallel import random

    # Activation recomputation and checkpoints save the CUDA generator beside the CPU's; its state is empty here.
    no_state = torch.empty(0, dtype=torch.uint8)
    random._get_cuda_rng_state = lambda *_, **__: no_state
    random._set_cuda_rng_state = lambda *_, **__: None
    torch.cuda.get_rng_state = lambda *_, **__: no_state
    torch.cuda.set_rng_state = lambda *_, **__: None
    # The training tracker forks CUDA generators around sharded layers; this one's fork does nothing. Dropout must be 0.
    random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
