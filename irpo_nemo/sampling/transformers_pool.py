"""The transformers sampler in several processes, each with a copy of the model on its GPU or its share of the cores.

Batches are those of one process and go to whoever is free, so completions are the same, token for token. A process that
dies ends the sampling: what it was at is drawn again by the next start.
"""

import asyncio
import dataclasses
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from irpo_nemo import errors
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import MachineError
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling.background import BackgroundLoop
from irpo_nemo.sampling.engine_process import EngineLost, EngineProcess
from irpo_nemo.sampling.ordering import batch_numbers
from irpo_nemo.sampling.sampler import Completion, SamplingRequest

_WORKER = "irpo_nemo.sampling.transformers_worker"


class TransformersPool:
    """Gives batches to processes."""

    honours_seeds = True

    def __init__(self, config: IRPOConfig, model_folder: Path, *, num_processes: int, gpus: Sequence[str]) -> None:
        """Start the processes and wait until each has loaded the model.

        Args:
            config: Of the run.
            model_folder: A Hugging Face folder.
            num_processes: How many.
            gpus: Dealt out in turn; none where the model runs on the processor.

        Raises:
            MachineError: One does not start; the message has its last words.
        """
        self._batch_size = config.sampler.batch_size
        self.window = self._batch_size * num_processes
        self._processes = [
            _plan_process(config, model_folder, number=number, num_processes=num_processes, gpus=gpus)
            for number in range(num_processes)
        ]
        with ExitStack() as stack:
            self._loop = BackgroundLoop("transformers_pool")
            stack.callback(self._loop.close)
            stack.callback(lambda: self._loop.run(self._stop_all()))
            self._free = self._loop.run(self._start_all())
            self._resources = stack.pop_all()

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Draw one completion for each request, in their order; see `Sampler`."""
        return self._loop.run(self._generate(requests))

    def close(self) -> None:
        """End the processes; calls of `generate` that are still at work fail."""
        self._resources.close()

    async def _start_all(self) -> "asyncio.Queue[EngineProcess]":
        await asyncio.gather(*(process.start() for process in self._processes))
        free: asyncio.Queue[EngineProcess] = asyncio.Queue()
        for process in self._processes:
            free.put_nowait(process)
        return free

    async def _stop_all(self) -> None:
        await asyncio.gather(*(process.stop(grace_seconds=0.0) for process in self._processes))

    async def _generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        completions: dict[int, Completion] = {}

        async def draw(numbers: Sequence[int]) -> None:
            drawn = await self._draw([requests[number] for number in numbers])
            completions.update(zip(numbers, drawn, strict=True))

        batches = [asyncio.ensure_future(draw(numbers)) for numbers in batch_numbers(requests, self._batch_size)]
        try:
            await asyncio.gather(*batches)
        finally:
            for batch in batches:
                batch.cancel()
        return [completions[number] for number in range(len(requests))]

    async def _draw(self, batch: Sequence[SamplingRequest]) -> list[Completion]:
        process = await self._free.get()
        try:
            answer = await process.ask({"requests": [dataclasses.asdict(request) for request in batch]})
        except EngineLost as lost:
            raise MachineError(
                f"{process.log}: a sampling process is gone, most often because memory ran out. Set "
                f"sampler.batch_size or sampler.transformers.num_processes lower, then run the same command again; "
                f"what is done is kept."
            ) from lost
        finally:
            self._free.put_nowait(process)
        if failure := answer.get("error"):
            raise getattr(errors, failure["kind"])(failure["message"])
        return [Completion(**completion) for completion in answer["completions"]]


def _plan_process(
    config: IRPOConfig, model_folder: Path, *, number: int, num_processes: int, gpus: Sequence[str]
) -> EngineProcess:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // num_processes)), "OMP_WAIT_POLICY": "PASSIVE"}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return EngineProcess(
        ["-m", _WORKER],
        {
            "model_folder": str(model_folder.resolve()),
            "dtype": config.sampler.dtype,
            "batch_size": config.sampler.batch_size,
            "trust_remote_code": config.model.trust_remote_code,
        },
        environment=environment,
        log=RunFolder(config.run_folder).log(f"sampling_{number}"),
        start_timeout_seconds=None,
        silence_timeout_seconds=math.inf,
    )
