"""The sampler for NVIDIA GPUs: TensorRT-LLM 1.2 engines, each with a copy of the model, in processes of their own.

Every completion is a request of its own (n = 1), because only so has each its own seed, finish reason and failure. All
requests of a problem go to one engine: its cache holds their prompt, and two engines of version 1.2 draw the same
random numbers. When an engine dies, the requests that it had are tried again in ever smaller company, until the one
that kills it stands alone. Of engines over several nodes (`mpi_launch`) a stage has one, which its launcher alone can
start again.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irpo_nemo.config import IRPOConfig, SamplerConfig, TensorRTLLMConfig
from irpo_nemo.errors import ConfigError, MachineError
from irpo_nemo.model_shape import ModelShape, read_hf_config
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling.background import BackgroundLoop
from irpo_nemo.sampling.endings import close_completion, read_stop_ids
from irpo_nemo.sampling.engine_process import EngineLost, EngineProcess
from irpo_nemo.sampling.gpus import list_gpus
from irpo_nemo.sampling.mpi_launch import check_launch, is_launched, leave_launch
from irpo_nemo.sampling.ordering import complete_all
from irpo_nemo.sampling.sampler import Completion, SamplingRequest
from irpo_nemo.tokenization import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("engine") / "worker.py"

_COMPANY = (None, 16, 1)
"""How many requests that an engine died with may be at work on it at once: no limit for those that are new."""
_LAUNCHED_GRACE_SECONDS = 120.0
"""In which an engine under a launcher must have said goodbye to all its ranks."""
_MOST_DEATHS_IN_VAIN = 5
"""Deaths in a row, without an answer between them, after which an engine is not started again."""


def open_sampler(config: IRPOConfig, model_folder: Path) -> "TensorRTLLMSampler":
    """Start the engines.

    Raises:
        ConfigError: The GPUs do not suffice for one engine.
        MachineError: An engine does not start.
        ModelError: The folder has no tokenizer.
    """
    tokenizer = load_tokenizer(model_folder, trust_remote_code=config.model.trust_remote_code)
    return TensorRTLLMSampler(config, model_folder, tokenizer)


@dataclass
class _Engine:
    """A process, and what the sampler keeps beside it."""

    process: EngineProcess
    window: asyncio.Semaphore
    suspects: list[asyncio.Semaphore]
    """For requests that the engine died with once, twice, ..."""
    reviving: asyncio.Lock = field(default_factory=asyncio.Lock)
    deaths_in_vain: int = 0
    at_home: int = 0
    """Requests that belong to it and are not answered."""


class TensorRTLLMSampler:
    """Spreads problems over engines."""

    def __init__(self, config: IRPOConfig, model_folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._stop_ids = read_stop_ids(model_folder, tokenizer)
        self.honours_seeds = config.sampler.tensorrt_llm.sampler_type == "TRTLLMSampler"
        self._is_closing = False
        self._window_per_engine = config.sampler.batch_size
        processes = list(_plan_engines(config, model_folder, self._stop_ids, tokenizer.eos_token_id))
        self.window = config.sampler.batch_size * len(processes)
        with ExitStack() as stack:
            self._loop = BackgroundLoop("tensorrt_llm")
            stack.callback(self._loop.close)
            stack.callback(lambda: self._loop.run(_stop_all(processes)))
            self._engines = self._loop.run(self._start_all(processes))
            self._resources = stack.pop_all()

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Draw one completion for each request, in their order; see `Sampler`."""
        return self._loop.run(self._generate(requests))

    def close(self) -> None:
        """End the engines; calls of `generate` that are still at work fail."""
        self._is_closing = True
        self._resources.close()

    async def _start_all(self, processes: Sequence[EngineProcess]) -> list[_Engine]:
        facts = await asyncio.gather(*(process.start() for process in processes))
        for process, fact in zip(processes, facts, strict=True):
            logger.info("engine ready after %.0f s: TensorRT-LLM %s", fact["seconds"], fact["tensorrt_llm"])
            logger.debug("its log is %s", process.log)
        return [
            _Engine(
                process=process,
                window=asyncio.Semaphore(self._window_per_engine),
                suspects=[asyncio.Semaphore(company) for company in _COMPANY if company is not None],
            )
            for process in processes
        ]

    async def _generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        homes: dict[str, _Engine] = {}

        async def complete(request: SamplingRequest) -> Completion:
            return await self._complete(request, self._home_of(request, homes))

        return await complete_all(requests, complete, window=self.window)

    def _home_of(self, request: SamplingRequest, homes: dict[str, _Engine]) -> _Engine:
        """The engine of the problem; a new problem goes where there is least to do."""
        if request.problem_id not in homes:
            homes[request.problem_id] = min(self._engines, key=lambda engine: engine.at_home)
        return homes[request.problem_id]

    async def _complete(self, request: SamplingRequest, engine: _Engine) -> Completion:
        engine.at_home += 1
        try:
            async with engine.window:
                answer = await self._ask_until_answered(engine, _to_json(request))
        finally:
            engine.at_home -= 1
        if "error" in answer:
            return Completion.failed(answer["error"])
        return close_completion(
            answer["token_ids"],
            answer["finish_reason"],
            stopped_by=answer["stop_reason"],
            stop_ids=self._stop_ids,
            tokenizer=self._tokenizer,
        )

    async def _ask_until_answered(self, engine: _Engine, request: dict[str, Any]) -> dict[str, Any]:
        for deaths in range(len(_COMPANY)):
            await self._revive(engine)
            try:
                if deaths == 0:
                    return await engine.process.ask(request)
                async with engine.suspects[deaths - 1]:
                    await self._revive(engine)
                    return await engine.process.ask(request)
            except EngineLost as lost:
                reason = str(lost)
        return {"error": f"{reason}, {len(_COMPANY)} times while it had this request"}

    async def _revive(self, engine: _Engine) -> None:
        """Start a dead engine again; the first who finds it so does it for all.

        Raises:
            MachineError: It dies again and again, or does not start.
        """
        async with engine.reviving:
            if engine.process.is_running:
                return
            if self._is_closing:
                raise MachineError("the sampler was closed while it was at work; run the same command again")
            if is_launched():
                raise MachineError(
                    f"{engine.process.log}: the engine is gone, and with it the ranks that trtllm-llmapi-launch has "
                    f"started. Look there for the reason, then launch the stage again; what is done is kept."
                )
            engine.deaths_in_vain = 0 if engine.process.answers else engine.deaths_in_vain + 1
            if engine.deaths_in_vain >= _MOST_DEATHS_IN_VAIN:
                raise MachineError(
                    f"{engine.process.log}: the engine died {_MOST_DEATHS_IN_VAIN} times in a row without an answer. "
                    f"Look there for the reason, then run the same command again; what is done is kept."
                )
            logger.info("starting the engine again")
            await engine.process.start()


def _plan_engines(
    config: IRPOConfig, model_folder: Path, stop_ids: Sequence[int], end_id: int
) -> Iterator[EngineProcess]:
    """Engines that are not started yet, each with its GPUs."""
    options = config.sampler.tensorrt_llm
    check_launch(options)
    order = {
        "llm": engine_arguments(config.sampler, model_folder, trust_remote_code=config.model.trust_remote_code),
        "end_id": end_id,
        "stop_token_ids": [token for token in stop_ids if token != end_id],
    }
    for number, environment in enumerate([{}] if is_launched() else _place_engines(options)):
        yield EngineProcess(
            [str(WORKER)],
            order,
            environment=environment,
            log=RunFolder(config.run_folder).log(f"engine_{number}"),
            start_timeout_seconds=options.start_timeout_seconds,
            silence_timeout_seconds=options.silence_timeout_seconds,
        )


def _place_engines(options: TensorRTLLMConfig) -> Iterator[dict[str, str]]:
    """What tells each engine of this node its GPUs."""
    size = options.tensor_parallel_size * options.pipeline_parallel_size
    for gpus in share_gpus(list_gpus(), size=size, num_engines=options.num_engines):
        # without MPI where there is one GPU
        yield {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} | ({"TLLM_WORKER_USE_SINGLE_PROCESS": "1"} if size == 1 else {})


def engine_arguments(sampler: SamplerConfig, model_folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """What LLM(...) is called with, as JSON; `max_input_len` is always given, because its default is 1024."""
    options = sampler.tensorrt_llm
    shape = ModelShape.from_hf_config(read_hf_config(model_folder))
    max_seq_len = options.max_seq_len or shape.max_position_embeddings
    return {
        **options.options,
        "model": str(model_folder.resolve()),
        "dtype": sampler.dtype,
        "trust_remote_code": trust_remote_code,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "gpus_per_node": _gpus_per_node(options),
        "max_batch_size": sampler.batch_size,
        "max_num_tokens": options.max_num_tokens,
        "max_seq_len": max_seq_len,
        "max_input_len": max_seq_len,
        "enable_chunked_prefill": options.enable_chunked_prefill,
        "sampler_type": options.sampler_type,
        "kv_cache_config": {
            "enable_block_reuse": options.enable_block_reuse,
            "free_gpu_memory_fraction": options.free_gpu_memory_fraction,
            "dtype": options.kv_cache_dtype,
        },
        "cuda_graph_config": {"enable_padding": True} if options.cuda_graphs else None,
    }


def _gpus_per_node(options: TensorRTLLMConfig) -> int | None:
    """Of an engine over several nodes; None for the GPUs that it sees."""
    size = options.tensor_parallel_size * options.pipeline_parallel_size
    return size // options.nodes_per_engine if options.nodes_per_engine > 1 else None


def share_gpus(gpus: Sequence[str], *, size: int, num_engines: int | None) -> list[Sequence[str]]:
    """Deal the GPUs out, `size` to an engine.

    Raises:
        ConfigError: There are too few.
    """
    if num_engines is None and len(gpus) < size:
        raise ConfigError(
            f"sampler.tensorrt_llm.tensor_parallel_size: an engine takes {size} GPUs, but {len(gpus)} are visible "
            f"(CUDA_VISIBLE_DEVICES, nvidia-smi). Set smaller sizes, run where there are more, or set nodes_per_engine."
        )
    count = num_engines or len(gpus) // size
    if count * size > len(gpus):
        raise ConfigError(
            f"sampler.tensorrt_llm.num_engines: is {count}, which takes {count * size} GPUs, but {len(gpus)} are "
            f"visible. Set it to at most {len(gpus) // size}."
        )
    return [gpus[number * size : (number + 1) * size] for number in range(count)]


def _to_json(request: SamplingRequest) -> dict[str, Any]:
    return {
        "prompt_token_ids": request.prompt_token_ids,
        "max_tokens": request.max_new_tokens,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }


async def _stop_all(processes: Sequence[EngineProcess]) -> None:
    if not is_launched():
        await asyncio.gather(*(process.stop() for process in processes))
    elif await processes[0].stop(grace_seconds=_LAUNCHED_GRACE_SECONDS):
        leave_launch()
