"""Stands in for TensorRT-LLM 1.2.1 where it cannot be installed: the surface that tensorrt_llm_1_2_1.json records, with
the validation, the asynchronous behaviour and the oddities that are known of it. Not collected by pytest; an engine's
process finds it through PYTHONPATH.

What it draws is a function of the prompt and a random stream. The last token of a prompt may ask for trouble.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SURFACE = json.loads((Path(__file__).parents[2] / "tensorrt_llm_1_2_1.json").read_text())

CRASH, HANG, NO_REASON, CANCELLED, CUT_STOP, REQUEST_ERROR = 901, 902, 903, 904, 905, 906
"""The engine's process dies; it never answers anything again; and so on."""


class RequestError(RuntimeError):
    pass


class _Strict:
    """Refuses what the recorded class has not."""

    def __init__(self, **given: Any) -> None:
        known = SURFACE[type(self).__name__]
        for name in given:
            if name not in known:
                raise ValueError(f"{type(self).__name__}: extra inputs are not permitted: {name}")
        for name, value in (known | given).items():
            setattr(self, name, value)


class KvCacheConfig(_Strict):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        assert 0 <= self.free_gpu_memory_fraction <= 1


class CudaGraphConfig(_Strict):
    pass


class SamplingParams:
    def __init__(self, **given: Any) -> None:
        known = SURFACE["SamplingParams"]
        for name in given:
            if name not in known:
                raise TypeError(f"SamplingParams.__init__() got an unexpected keyword argument '{name}'")
        for name, value in (known | given).items():
            setattr(self, name, value)
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"require temperature >= 0, got temperature={self.temperature}")
        self.was_used = False

    @property
    def is_greedy(self) -> bool:
        unset = self.temperature is None and self.top_p is None and self.top_k is None
        return unset or self.top_k == 1 or self.top_p == 0 or self.temperature == 0


class LLM:
    def __init__(self, model: str, tokenizer: Any = None, **given: Any) -> None:
        for name in given:
            if name not in SURFACE["LLM"]["keyword"]:
                raise ValueError(SURFACE["LLM"]["unknown"].format(name=name))
        self.model, self.tokenizer = model, tokenizer
        self.args = SimpleNamespace(**(SURFACE["LLM"]["keyword"] | given))
        assert isinstance(self.args.kv_cache_config, KvCacheConfig)
        assert self.args.cuda_graph_config is None or isinstance(self.args.cuda_graph_config, CudaGraphConfig)
        if os.environ.get("DOUBLE_FAILS_TO_START"):
            raise RuntimeError("CUDA out of memory")
        self._stream = random.Random(42)
        self._is_shut_down = False
        self._hangs = False
        self._next_id = 0
        self._record(
            {"pid": os.getpid(), "environment": dict(os.environ), "arguments": {k: repr(v) for k, v in given.items()}}
        )

    def generate_async(
        self, inputs: Any, sampling_params: SamplingParams | None = None, **options: Any
    ) -> "RequestOutput":
        if unknown := set(options) - set(SURFACE["generate_async"]):
            raise TypeError(f"LLM.generate_async() got an unexpected keyword argument {unknown}")
        if self._is_shut_down:
            raise RuntimeError("LLM is shutting down")
        params = sampling_params or SamplingParams()
        assert not params.was_used, "the library has written into this object before"
        params.was_used = True
        prompt = inputs["prompt_token_ids"] if isinstance(inputs, dict) else inputs
        limit = self.args.max_num_tokens
        if len(prompt) > limit and not self.args.enable_chunked_prefill:
            raise ValueError(
                f"The sum of prompt length ({len(prompt)}), query length (0) should not exceed max_num_tokens ({limit})"
            )
        self._next_id += 1
        self._record({"prompt": prompt, "seed": params.seed, "id": self._next_id})
        return RequestOutput(self, self._next_id, prompt, params)

    def shutdown(self) -> None:
        self._is_shut_down = True
        self._record({"shutdown": True})
        if os.environ.get("TLLM_SPAWN_PROXY_PROCESS") == "1":
            Path(os.environ["TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR"]).touch()  # the leader of the ranks may go

    async def draw(self, prompt: list[int], params: SamplingParams) -> "CompletionOutput":
        """What the engine does with one request, the tokens of others in between."""
        trouble = prompt[-1]
        if trouble == CRASH:
            await asyncio.sleep(0.02)
            os.kill(os.getpid(), signal.SIGSEGV)
        if trouble == HANG:
            self._hangs = True
        if len(prompt) + 1 > (self.args.max_input_len or 1024):
            raise RequestError(f"prompt length {len(prompt)} exceeds max_input_len {self.args.max_input_len}")
        if trouble == REQUEST_ERROR:
            raise RequestError("the batch manager said no")
        own = random.Random(params.seed or 0) if self.args.sampler_type == "TRTLLMSampler" else self._stream
        source = random.Random(sum(prompt)) if params.is_greedy else own
        tokens, reason = [], "length"
        for _ in range(min(params.max_tokens, self.args.max_seq_len - len(prompt))):
            await asyncio.sleep(float(os.environ.get("DOUBLE_TOKEN_SECONDS", "0")))
            while self._hangs:
                await asyncio.sleep(1.0)
            tokens.append(source.randrange(10, 200))
            if tokens[-1] % 10 == 0:
                tokens[-1], reason = params.end_id, "stop"
                break
        stop_reason = None
        if trouble == CUT_STOP:
            tokens, reason, stop_reason = [11, 12], "stop", (params.stop_token_ids or [None])[0]
        if trouble == NO_REASON:
            reason = None
        if trouble == CANCELLED:
            tokens, reason = [11], "cancelled"
        return CompletionOutput(tokens, reason, stop_reason)

    def _record(self, what: dict[str, Any]) -> None:
        path = os.environ.get("DOUBLE_RECORD")
        if path:
            with Path(path).open("a") as file:
                file.write(
                    json.dumps({"engine": os.environ["CUDA_VISIBLE_DEVICES"], "time": time.time(), **what}) + "\n"
                )


class RequestOutput:
    """A future, as in the library: awaited once it has all."""

    def __init__(self, llm: LLM, request_id: int, prompt: list[int], params: SamplingParams) -> None:
        self.request_id = request_id
        self.prompt = None
        self.prompt_token_ids = prompt
        self.outputs: list[CompletionOutput] = []
        self.context_logits = None
        self.finished = False
        self._work = (llm, prompt, params)

    async def aresult(self) -> "RequestOutput":
        llm, prompt, params = self._work
        self.outputs = [await llm.draw(prompt, params)]
        self.finished = True
        return self

    def __await__(self) -> Any:
        return self.aresult().__await__()


class CompletionOutput:
    def __init__(self, token_ids: list[int], finish_reason: str | None, stop_reason: Any) -> None:
        for name in SURFACE["CompletionOutput"]:
            setattr(self, name, None)
        self.index, self.text, self.token_ids = 0, "", token_ids
        self.finish_reason, self.stop_reason = finish_reason, stop_reason


print("[TensorRT-LLM] a line that a library prints where it likes", file=sys.stdout, flush=True)
