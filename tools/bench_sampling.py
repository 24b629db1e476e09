#!/usr/bin/env python
"""Completions per second of the transformers sampler beside a plain `generate` loop, on the arithmetic task.

    tools/bench_sampling.py --json sampling.json

The plain loop takes prompts in input order, pads each batch on the left and calls model.generate. Both sides get the
same model, prompts and token budget, in turn, `--rounds` times after one that warms up. Greedy outputs must be equal,
token for token. Rates are of wall time and, for machines that have other work, of processor time (of this process:
not with --processes). Without --model, the quickstart's M_0 is trained first (some minutes on a CPU).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the launcher sets it

import torch
import transformers

from irpo_nemo.config_files import load_config
from irpo_nemo.sampling import SamplingRequest, open_sampler
from irpo_nemo.sampling.transformers import stop_token_ids
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import encode_prompts, load_tokenizer

Draw = Callable[[Sequence[SamplingRequest]], list[list[int]]]


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model_folder = options.model or train_model_zero(Path(folder))
        modes = {"greedy": 1, "sampled": options.num_candidates}
        results = {mode: compare(model_folder, copies, mode, options) for mode, copies in modes.items()}
    report = {
        "command": " ".join(sys.argv),
        "device": describe_device(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "threads": torch.get_num_threads(),
        **results,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if not results["greedy"]["outputs_equal"]:
        sys.exit("greedy outputs differ")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a model for the quickstart's task")
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--num-candidates", type=int, default=12, help="samples of a problem, where they are drawn")
    parser.add_argument("--plain-batch", type=int, default=32, help="batch of the plain loop")
    parser.add_argument("--batch", type=int, default=256, help="sampler.batch_size")
    parser.add_argument("--processes", type=int, default=1, help="sampler.transformers.num_processes")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    return parser.parse_args()


def train_model_zero(folder: Path) -> Path:
    """The quickstart's M_0, made in one process."""
    overrides = [f"run_root={folder}", "parallel.tensor_model_parallel_size=1", "launcher.ranks=1"]
    for stage in ("prepare", "sft"):
        subprocess.run([sys.executable, "-m", "irpo_nemo", "stage", stage, "quickstart", *overrides], check=True)
    return folder / "quickstart" / "m0" / "hf"


def compare(model_folder: Path, copies: int, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time both sides in turn."""
    requests = make_requests(model_folder, copies, mode, options)
    sides: dict[str, Draw] = {
        "sampler": open_side(model_folder, options),
        "plain": open_plain_side(model_folder, options.plain_batch),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    cpu_seconds: dict[str, list[float]] = {side: [] for side in sides}
    outputs: dict[str, list[list[int]]] = {}
    for number in range(options.rounds + 1):
        for side, draw in sides.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            outputs[side] = draw(requests)
            if number:
                seconds[side].append(time.perf_counter() - began)
                cpu_seconds[side].append(time.process_time() - cpu_began)
    rates, cpu_rates = (
        {side: len(requests) / statistics.median(taken) for side, taken in times.items()}
        for times in (seconds, cpu_seconds)
    )
    tokens = {side: sum(map(len, made)) for side, made in outputs.items()}
    ratio, cpu_ratio = (rate["sampler"] / rate["plain"] for rate in (rates, cpu_rates))
    print(
        f"{mode}: {len(requests)} completions; sampler {rates['sampler']:.1f}/s, "
        f"plain generate {rates['plain']:.1f}/s, {ratio:.2f} times, "
        f"{cpu_ratio:.2f} times in processor time; "
        f"{tokens['sampler'] / len(requests):.1f} tokens a completion"
    )
    return {
        "completions": len(requests),
        "tokens": tokens,
        "completions_per_second": {side: round(rate, 2) for side, rate in rates.items()},
        "seconds": {side: [round(value, 3) for value in taken] for side, taken in seconds.items()},
        "completions_per_cpu_second": {side: round(rate, 2) for side, rate in cpu_rates.items()},
        "ratio": round(ratio, 3),
        "cpu_ratio": round(cpu_ratio, 3),
        "outputs_equal": outputs["sampler"] == outputs["plain"],
    }


def make_requests(model_folder: Path, copies: int, mode: str, options: argparse.Namespace) -> list[SamplingRequest]:
    config = load_config("quickstart", [f"task.arithmetic.num_train_problems={options.problems}"])
    task = load_task(config)
    problems = task.train_problems()
    tokenizer = load_tokenizer(model_folder, trust_remote_code=False)
    prompts = encode_prompts(tokenizer, [task.prompt(problem) for problem in problems], chat_template="none")
    return [
        SamplingRequest(
            candidate_id=f"{problem.problem_id}/sample/{copy}",
            problem_id=problem.problem_id,
            kind="sample",
            index=copy,
            prompt_token_ids=prompt,
            temperature=0.0 if mode == "greedy" else 0.8,
            top_p=1.0,
            max_new_tokens=options.max_new_tokens,
            seed=copies * number + copy,
        )
        for number, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
        for copy in range(copies)
    ]


def open_side(model_folder: Path, options: argparse.Namespace) -> Draw:
    overrides = [f"sampler.batch_size={options.batch}", f"sampler.transformers.num_processes={options.processes}"]
    config = load_config("quickstart", ["sampler=transformers", f"run_root={tempfile.gettempdir()}", *overrides])
    sampler = open_sampler(config, model_folder)
    return lambda requests: [completion.token_ids for completion in sampler.generate(requests)]


def open_plain_side(model_folder: Path, batch: int) -> Draw:
    """What one writes with transformers alone."""
    tokenizer = load_tokenizer(model_folder, trust_remote_code=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).to(device).eval()
    stop_ids = stop_token_ids(model, tokenizer)

    @torch.inference_mode()
    def draw(requests: Sequence[SamplingRequest]) -> list[list[int]]:
        return [ids for start in range(0, len(requests), batch) for ids in draw_batch(requests[start : start + batch])]

    def draw_batch(requests: Sequence[SamplingRequest]) -> Iterator[list[int]]:
        length = max(len(request.prompt_token_ids) for request in requests)
        rows = [[0] * (length - len(r.prompt_token_ids)) + r.prompt_token_ids for r in requests]
        mask = [[0] * (length - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids) for r in requests]
        temperature = requests[0].temperature
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        output = model.generate(
            torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=requests[0].max_new_tokens,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
            **drawing,
        )
        for row in output[:, length:].tolist():
            end = next((place for place, token in enumerate(row) if token in stop_ids), len(row) - 1)
            yield row[: end + 1]

    return draw


def describe_device() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU {platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
