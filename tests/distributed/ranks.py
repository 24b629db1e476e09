"""Run a function on several gloo ranks, one process each, and get every rank's result.

Ranks fork from a server that has imported torch and Megatron once, so every world but the first starts in well under
a second.
"""

import faulthandler
import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

_PRELOADED = [
    "pytest",
    "pyarrow.dataset",
    "torch",
    "torch.utils.tensorboard",
    "irpo_nemo.training.session",
    "irpo_nemo.training.gpt",
    "megatron.core.distributed",
]


def run_on_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_seconds: float = 120.0
) -> list[Any]:
    """Call `function(*args)` on each rank, inside an initialised gloo process group.

    Args:
        function: Defined at the top of a module, so that another process can import it.
        world_size: Number of ranks.
        args: Passed to every rank; pickled.
        timeout_seconds: All ranks are killed after this time, and the stacks of those that hang go to stderr.

    Returns:
        What each rank returned, by rank.

    Raises:
        AssertionError: A rank raised or died; the message holds the tracebacks of those that did.
        TimeoutError: Ranks were still running.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # before the server starts: ranks share few cores
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    environment = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    ranks: dict[Connection, tuple[int, BaseProcess]] = {}
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process: BaseProcess = context.Process(target=_run_rank, args=(sender, own, timeout_seconds, function, args))
        process.start()
        sender.close()
        ranks[receiver] = (rank, process)
    try:
        return _collect(ranks, timeout_seconds)
    finally:
        for _, process in ranks.values():
            process.kill()
            process.join()


def leave_layout() -> None:
    """On each rank: end Megatron's groups, and the threads that gloo has for each, so that others can be made."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.barrier()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def _collect(ranks: dict[Connection, tuple[int, BaseProcess]], timeout_seconds: float) -> list[Any]:
    deadline = time.monotonic() + timeout_seconds
    results: dict[int, Any] = {}
    failures: list[str] = []
    running = dict(ranks)
    while running:
        ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank, process = running.pop(receiver)
            succeeded, value = _receive(receiver, process)
            if succeeded:
                results[rank] = value
            else:
                failures.append(f"rank {rank} failed:\n{value}")
                deadline = min(deadline, time.monotonic() + 1)  # the others fail next, or wait for this one for ever
    if failures:
        raise AssertionError("\n".join(failures))
    if running:
        raise TimeoutError(f"ranks {[rank for rank, _ in running.values()]} still ran after {timeout_seconds} s")
    return [results[rank] for rank in sorted(results)]


def _receive(receiver: Connection, process: BaseProcess) -> tuple[bool, Any]:
    try:
        return pickle.loads(receiver.recv_bytes())  # type: ignore[no-any-return]
    except EOFError:
        process.join()
        return False, f"died with exit code {process.exitcode}"


def _run_rank(
    sender: Connection,
    environment: dict[str, str],
    timeout_seconds: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(timeout_seconds - 1)
    try:
        torch.distributed.init_process_group("gloo")
        value = function(*args)
        if torch.distributed.is_initialized():  # a training session leaves the job itself
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        sender.send_bytes(pickle.dumps((True, value)))  # send() would share tensors with a process that is gone
    except BaseException:  # noqa: BLE001  the parent raises it again
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
        os._exit(1)  # do not wait for groups whose other ranks are stuck
    finally:
        faulthandler.cancel_dump_traceback_later()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
