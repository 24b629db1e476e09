"""One TensorRT-LLM engine behind a socket. Started as a file, which TensorRT-LLM's own workers import again.

Lines of JSON, on the socket whose descriptor is the only argument:

    in    {"llm": {...}, "end_id": 2, "stop_token_ids": [...]}         once: start the engine
    out   {"ready": {"tensorrt_llm": "1.2.1", "seconds": 41.2}}
    in    {"id": 7, "prompt_token_ids": [...], "max_tokens": 512, "seed": 1, "temperature": 0.8, "top_p": 1.0}
    out   {"id": 7, "token_ids": [...], "finish_reason": "stop", "stop_reason": null}
    out   {"id": 8, "error": "why this request failed"}

The end of the input ends the engine. Written for TensorRT-LLM 1.2.x; imports nothing of this package.
"""

import asyncio
import importlib.metadata
import json
import os
import socket
import sys
import time
from typing import Any

_LONGEST_LINE = 1 << 26
"""Bytes of a request."""


def main(descriptor: int) -> None:
    """Serve the engine's owner until it closes the socket."""
    os.set_inheritable(descriptor, False)  # MPI workers of the engine must not keep the socket open
    asyncio.run(serve(socket.socket(fileno=descriptor)))


async def serve(connection: socket.socket) -> None:
    """Start the engine that the first line asks for, then answer requests as they finish."""
    reader, writer = await asyncio.open_connection(sock=connection, limit=_LONGEST_LINE)
    order = json.loads(await reader.readline())
    started = time.perf_counter()
    llm = open_engine(order["llm"])
    send(writer, {"ready": {"tensorrt_llm": installed_version(), "seconds": time.perf_counter() - started}})
    at_work = set()
    while line := await reader.readline():
        task = asyncio.create_task(answer(llm, order, json.loads(line), writer))
        at_work.add(task)
        task.add_done_callback(at_work.discard)
    for task in at_work:
        task.cancel()
    llm.shutdown()


def open_engine(arguments: dict[str, Any]) -> Any:
    """Make the engine; the settings of cache and graphs become objects of the library."""
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi import CudaGraphConfig, KvCacheConfig

    cache = KvCacheConfig(**arguments["kv_cache_config"])
    graphs = arguments["cuda_graph_config"] and CudaGraphConfig(**arguments["cuda_graph_config"])
    return LLM(**arguments | {"kv_cache_config": cache, "cuda_graph_config": graphs})


async def answer(llm: Any, order: dict[str, Any], request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Draw one completion; whatever goes wrong with it is its own answer."""
    try:
        result = await llm.generate_async(
            {"prompt_token_ids": request["prompt_token_ids"]}, sampling_params=sampling_params(order, request)
        )
        made = result.outputs[0]
        reply = {
            "token_ids": list(made.token_ids),
            "finish_reason": made.finish_reason,
            "stop_reason": made.stop_reason,
        }
    except Exception as error:  # noqa: BLE001 - one request's failure, of whatever kind, must not end the engine
        reply = {"error": f"{type(error).__name__}: {error}"}
    send(writer, {"id": request["id"], **reply})


def sampling_params(order: dict[str, Any], request: dict[str, Any]) -> Any:
    """A fresh object, because the library writes into it. Without a temperature, decoding is greedy."""
    from tensorrt_llm import SamplingParams

    is_greedy = request["temperature"] == 0
    drawing = {} if is_greedy else {"temperature": request["temperature"], "top_p": request["top_p"]}
    return SamplingParams(
        n=1,
        max_tokens=request["max_tokens"],
        seed=request["seed"],
        end_id=order["end_id"],
        stop_token_ids=order["stop_token_ids"] or None,
        include_stop_str_in_output=True,
        add_special_tokens=False,
        detokenize=False,
        **drawing,
    )


def send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    """Write one line."""
    writer.write(json.dumps(message).encode() + b"\n")


def installed_version() -> str:
    """Read without the import that needs a GPU."""
    try:
        return importlib.metadata.version("tensorrt-llm")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main(int(sys.argv[1]))
