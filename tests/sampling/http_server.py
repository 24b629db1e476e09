"""A real HTTP server with /v1/completions that decodes with transformers' own `generate`, and fails when it is told to.

python -m tests.sampling.http_server MODEL_FOLDER PORT
"""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer

KNOWN_FIELDS = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed", "stop_token_ids"}
KINDS = {
    "vllm": {"fields": {"return_token_ids"}, "forbids_others": False},
    "trtllm": {"fields": {"detokenize", "include_stop_str_in_output", "top_k"}, "forbids_others": True},
    "plain": {"fields": set(), "forbids_others": False},
}
Body = dict[str, Any]


class CompletionServer:
    """A server in a thread. `faults` are used up one a request; None lets a request through."""

    def __init__(self, folder: Path, *, kind: str = "vllm", takes_ids: bool = True) -> None:
        self.folder = folder
        self.model_name = str(folder)
        self.kind = kind
        self.takes_ids = takes_ids
        self.faults: list[Any] = []
        self.fault_of: Callable[[Body], Any] = self._next_fault
        self.bodies: list[Body] = []
        """Of the requests that were answered."""
        self.num_requests = 0
        self.port = 0
        self._model = AutoModelForCausalLM.from_pretrained(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._runner: web.AppRunner | None = None
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> "CompletionServer":
        self._wait_for(self._start())
        return self

    def stop(self) -> None:
        """Drop every connection and close the port; `start` opens the same one again."""
        self._wait_for(self._stop())

    def _wait_for(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _next_fault(self, body: Body) -> Any:  # noqa: ARG002
        return self.faults.pop(0) if self.faults else None

    async def _start(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/models", self._models), web.post("/v1/completions", self._completions)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.json_response({"data": [{"id": "served", "root": self.model_name}]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        self.num_requests += 1
        body = await request.json()
        fault = self.fault_of(body)
        if fault is not None:
            return await fault(request)
        if refusal := self._refuse(body):
            return web.json_response({"error": refusal}, status=400)
        choice, num_prompt_tokens = await asyncio.to_thread(self._generate, body)
        self.bodies.append(body)
        return web.json_response(
            {"model": body["model"], "choices": [choice], "usage": {"prompt_tokens": num_prompt_tokens}}
        )

    def _refuse(self, body: Body) -> str | None:
        kind = KINDS[self.kind]
        unknown = set(body) - KNOWN_FIELDS - kind["fields"]  # type: ignore[operator]
        if unknown and kind["forbids_others"]:
            return f"extra fields not permitted: {sorted(unknown)}"
        if isinstance(body["prompt"], list) and not self.takes_ids:
            return "prompt must be a string"
        return None

    def _generate(self, body: Body) -> tuple[dict[str, Any], int]:
        prompt = body["prompt"]
        ids = self._tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        stop_ids = [self._tokenizer.eos_token_id, *body.get("stop_token_ids", [])]
        top_k = max(body.get("top_k", 1 if self.kind == "vllm" else 0), 0)  # vLLM asks generation_config.json
        sampling = {"do_sample": True, "temperature": body["temperature"], "top_p": body["top_p"], "top_k": top_k}
        inputs = torch.tensor([ids])
        with self._lock:
            torch.manual_seed(body["seed"])
            output = self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=body["max_tokens"],
                eos_token_id=stop_ids,
                pad_token_id=0,
                **(sampling if body["temperature"] else {"do_sample": False}),
            )
        tokens = output[0, len(ids) :].tolist()
        stopped = tokens[-1] in stop_ids
        if self.kind == "trtllm" and stopped:
            tokens = tokens[:-1]  # as TensorRT-LLM may do
        choice = {
            "index": 0,
            "text": self._tokenizer.decode(tokens, skip_special_tokens=True),
            "finish_reason": "stop" if stopped else "length",
        }
        if body.get("return_token_ids") and self.kind == "vllm":
            choice["token_ids"] = tokens
        if body.get("detokenize") is False and self.kind == "trtllm":
            choice |= {"token_ids": tokens, "text": ""}
        return choice, len(ids)


def status(code: int, text: str = "", headers: Iterable[tuple[str, str]] = ()) -> Any:
    """A fault: this HTTP status."""

    async def answer(request: web.Request) -> web.Response:  # noqa: ARG001
        return web.Response(status=code, text=text, headers=dict(headers))

    return answer


async def drop(request: web.Request) -> web.Response:
    """A fault: the connection breaks before an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def truncate(request: web.Request) -> web.Response:  # noqa: ARG001
    """A fault: half of a JSON object."""
    return web.Response(text='{"choices": [{"index": 0, "tok', content_type="application/json")


async def break_off(request: web.Request) -> web.StreamResponse:
    """A fault: the connection breaks in the middle of an answer."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.abort()
    return response


async def hang(request: web.Request) -> web.Response:  # noqa: ARG001
    """A fault: an answer that takes longer than anyone waits."""
    await asyncio.sleep(60)
    return web.Response()


async def two_choices(request: web.Request) -> web.Response:  # noqa: ARG001
    """A fault: more than was asked for."""
    return web.json_response({"choices": [{"token_ids": [1]}, {"token_ids": [2]}]})


if __name__ == "__main__":
    torch.set_num_threads(1)
    server = CompletionServer(Path(sys.argv[1]))
    server.port = int(sys.argv[2])
    server.start()
    print(json.dumps({"listening": server.port}), flush=True)
    threading.Event().wait()
