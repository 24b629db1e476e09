"""Write a sharded state to a folder in Megatron's torch_dist format while training goes on.

Megatron-core plans what each rank writes, and completes the folder when all have written. Its own ways to write in the
background are a forked process (0.16) or a daemon of another package (0.17 and later), which outlive a rank that is
killed and go on writing. Here threads of the rank itself write a copy of its state, so nothing is left of a killed rank
but a folder without Megatron's metadata.
"""

import inspect
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from irpo_nemo.artifacts import explain_os_errors
from irpo_nemo.training.parallel import training_device


class ShardedSave:
    """One save under way: this rank's files are being written, and the folder is completed by `finish`.

    Args:
        state: Megatron's sharded state dict.
        folder: Exists and is empty. Every rank names the same.
        in_background: Training goes on, so write a copy in host memory; else the state itself, which must not change.

    Only one may be under way. Every rank makes it, and calls its methods, at the same time.
    """

    def __init__(self, state: dict[str, Any], folder: Path, *, in_background: bool) -> None:
        self._folder = folder
        _keep_write_results_here()
        with explain_os_errors(folder):
            self._request = _plan_save(state, folder)
        self._writes = [] if self._request.async_fn is None else self._start_writing(copy=in_background)

    def is_done(self) -> bool:
        """Whether every rank has written its files, so that `finish` need not wait. All-reduces once over all ranks."""
        done = torch.tensor(int(all(write.done() for write in self._writes)), device=training_device())
        dist.all_reduce(done, op=dist.ReduceOp.MIN)
        return bool(done)

    def finish(self) -> None:
        """Wait until every rank has written its files, then complete the folder.

        Raises:
            ArtifactError: The disk of this rank is full or cannot be written.
        """
        with explain_os_errors(self._folder):
            results = {number: write.result() for number, write in enumerate(self._writes)}
            if results:
                _, _, results_queue = self._request.async_fn_args
                results_queue.put(results)
            for complete in self._request.finalize_fns:
                complete()

    def _start_writing(self, *, copy: bool) -> list["Future[Any]"]:
        _, live_buckets, _ = self._request.async_fn_args
        buckets = self._request.preload_fn()
        if copy:
            buckets = [_copy_host_tensors(bucket, live) for bucket, live in zip(buckets, live_buckets, strict=True)]
        transforms = self._request.async_fn.args[0]
        return [_run_in_thread(_write_bucket, transforms, number, bucket) for number, bucket in enumerate(buckets)]


def _plan_save(state: dict[str, Any], folder: Path) -> Any:
    """Megatron's AsyncRequest: what this rank is to write, and how to complete the folder."""
    from megatron.core import dist_checkpointing

    options: dict[str, Any] = {"async_sharded_save": True}
    if "async_strategy" in inspect.signature(dist_checkpointing.save).parameters:
        options["async_strategy"] = "mcore"  # 0.17 and later: the default wants another package
    return dist_checkpointing.save(state, str(folder), **options)


def _keep_write_results_here() -> None:
    """Spare the process that Megatron-core (0.16 to 0.19) starts to carry the results of writers of other processes.

    Ours are threads, so a queue of this process does. The other costs 280 MiB and a second or two, and stays for ever
    when its rank is killed.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = filesystem_async._results_queue or queue.Queue()


def _copy_host_tensors(bucket: Any, live: Any) -> Any:
    """Clone what Megatron did not bring to host memory, because it was there before and training will change it."""
    path, key, (blobs, tensors) = bucket
    pairs = zip(tensors, live[2][1], strict=True)
    return path, key, (blobs, [(item, new.clone() if new is old else new) for (item, new), (_, old) in pairs])


def _write_bucket(transforms: Sequence[Any], number: int, bucket: Any) -> Any:
    """Write one file and fsync it; return what Megatron wants to know of it."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    results: queue.Queue[tuple[int, Any]] = queue.Queue()
    at_work: queue.Queue[int] = queue.Queue()
    at_work.put(number)
    FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, results, at_work, use_fsync=True)
    _, answer = results.get_nowait()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _run_in_thread(function: Callable[..., Any], *args: Any) -> "Future[Any]":
    """Call `function` in a thread that does not keep an ending process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # noqa: BLE001  the thread that waits raises it
            future.set_exception(error)

    threading.Thread(target=run, name=function.__name__, daemon=True).start()
    return future
