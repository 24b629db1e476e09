#!/usr/bin/env python
"""How much the client of openai_server can take: completions per second, and memory, against a server that answers at
once.

    tools/bench_client.py --completions 1000000 --json client.json

The server is a bare asyncio protocol in processes of its own (`--servers`), which reads a request's length and sends
canned token ids; so what is measured is one client process: its JSON, HTTP, tasks and endings. The client keeps to the
first processor core and the servers to the others, where there are others. Requests come in parts,
as the sample stage sends them, and nothing is kept of a part that is done. Memory is the resident memory after each
tenth of the completions; the growth is from the second tenth to the last.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from irpo_nemo.config import IRPOConfig, ServerConfig
from irpo_nemo.model_zero import make_initial_model
from irpo_nemo.sampling import Sampler, SamplingRequest, open_sampler

CANDIDATES_PER_PROBLEM = 30
PROBLEMS_PER_PART = 128


class CannedServer(asyncio.Protocol):
    """Answers GET with the model list, POST with the same tokens each time."""

    def __init__(self, models: bytes, completion: bytes) -> None:
        self._models = as_response(models)
        self._completion = as_response(completion)
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[:end]).lower()
            length = 0
            if (place := head.find(b"content-length:")) >= 0:
                length = int(head[place + 15 :].split(b"\r\n", 1)[0])
            if len(self._data) < end + 4 + length:
                return
            del self._data[: end + 4 + length]
            self._transport.write(self._models if head.startswith(b"get") else self._completion)


def as_response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def serve(pipe: Connection, model_folder: str, num_tokens: int) -> None:
    """Run one server until it is killed; send its port."""
    models = json.dumps({"data": [{"id": "m", "root": model_folder}]}).encode()
    choice = {"index": 0, "text": "", "token_ids": [5] * num_tokens + [1], "finish_reason": "stop"}
    completion = json.dumps({"model": "m", "choices": [choice]}).encode()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: CannedServer(models, completion), "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        model_folder = Path(folder) / "model"
        config = make_config(options)
        make_initial_model(config, model_folder)
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[1:] or cores)
        ports = [start_server(str(model_folder), options.tokens) for _ in range(options.servers)]
        os.sched_setaffinity(0, cores[:1])
        config.sampler.server = ServerConfig(base_urls=[f"http://127.0.0.1:{port}/v1" for port in ports])
        report = measure(open_sampler(config, model_folder), options)
    report = {
        "command": " ".join(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "aiohttp": version("aiohttp"),
        **report,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=256, help="sampler.batch_size, for each server")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=200, help="of each completion")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return parser.parse_args()


def make_config(options: argparse.Namespace) -> IRPOConfig:
    config = IRPOConfig()
    config.model.hidden_size, config.model.num_layers, config.model.ffn_hidden_size = 32, 1, 32
    config.task.arithmetic.num_demonstrations = 100
    config.sampler.name = "openai_server"
    config.sampler.batch_size = options.in_flight
    return config


def start_server(model_folder: str, num_tokens: int) -> int:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs, model_folder, num_tokens), daemon=True)
    process.start()
    return int(ours.recv())


def measure(sampler: Sampler, options: argparse.Namespace) -> dict[str, Any]:
    """Draw parts, two or more at once, as the sample stage does."""
    per_part = PROBLEMS_PER_PART * CANDIDATES_PER_PROBLEM
    at_once = 1 + -(-sampler.window // per_part)
    memory, done, next_mark = [], 0, options.completions / 10
    began, cpu_began = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(at_once) as executor:
        for drawn in draw_parts(executor, sampler, options, per_part, at_once):
            done += drawn
            while done >= next_mark:
                memory.append(resident_mib())
                next_mark += options.completions / 10
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    sampler.close()
    growth = memory[-1] - memory[1]
    print(
        f"{done} completions in {seconds:.1f} s: {done / seconds:.0f}/s, {done / cpu_seconds:.0f} per second of "
        f"processor time; resident memory {memory[-1]:.0f} MiB, {growth:+.1f} MiB since the second tenth"
    )
    return {
        "completions": done,
        "completions_per_second": round(done / seconds, 1),
        "completions_per_cpu_second": round(done / cpu_seconds, 1),
        "resident_mib": [round(value, 1) for value in memory],
        "growth_mib": round(growth, 1),
    }


def draw_parts(
    executor: ThreadPoolExecutor, sampler: Sampler, options: argparse.Namespace, per_part: int, at_once: int
) -> Iterator[int]:
    """Yield the completions of each part, `at_once` parts being at work."""
    sizes = [min(per_part, options.completions - start) for start in range(0, options.completions, per_part)]
    at_work = []
    for number, size in enumerate(sizes):
        at_work.append(executor.submit(draw_part, sampler, number, size, options))
        if len(at_work) == at_once:
            yield at_work.pop(0).result()
    yield from (future.result() for future in at_work)


def draw_part(sampler: Sampler, number: int, size: int, options: argparse.Namespace) -> int:
    requests: Sequence[SamplingRequest] = [
        SamplingRequest(
            candidate_id=f"{number}-{place}",
            problem_id=f"{number}-{place // CANDIDATES_PER_PROBLEM}",
            kind="sample",
            index=place % CANDIDATES_PER_PROBLEM,
            prompt_token_ids=[7] * options.prompt_tokens,
            temperature=0.8,
            top_p=1.0,
            max_new_tokens=512,
            seed=number * size + place,
        )
        for place in range(size)
    ]
    completions = sampler.generate(requests)
    assert all(completion.finish_reason == "stop" for completion in completions)
    return len(completions)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
