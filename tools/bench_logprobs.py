#!/usr/bin/env python
"""Time and extra memory of log-probs from hidden states, beside the naive way through all logits.

    tools/bench_logprobs.py --json logprobs.json
    tools/bench_logprobs.py --tokens 8192 --vocab 128256 --rounds 1

Naive: logits in one matrix, Megatron's way of a vocabulary-parallel log-softmax in fp32, gradients by autograd. Both go
forward and backward, to hidden states and weights, on one rank, each in processes of its own, in turn. Extra memory is
what the op needs beyond hidden states, weights and their gradients.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_training import peak_gib

REPEATS = 3


def main() -> None:
    options = parse_arguments()
    if options.side:
        print(json.dumps(measure(options)))
        return
    rounds = [{side: run_side(side) for side in ("ours", "theirs")} for _ in range(options.rounds)]
    medians = {
        side: {key: statistics.median(sides[side][key] for sides in rounds) for key in rounds[0]["ours"]}
        for side in ("ours", "theirs")
    }
    ratios = {
        key: statistics.median(sides["ours"][key] / sides["theirs"][key] for sides in rounds) for key in medians["ours"]
    }
    print(f"{'':20}{'ours':>12}{'naive':>12}{'ratio':>10}")
    for key, ratio in ratios.items():
        print(f"{key:20}{medians['ours'][key]:12.3f}{medians['theirs'][key]:12.3f}{ratio:10.3f}")
    if options.json:
        result = {
            **medians,
            "ratio": {"seconds": ratios["seconds"], "peak_memory": ratios["extra_memory_gib"]},
            "versions": {"torch": version("torch")},
            "command": shlex.join(sys.argv),
        }
        options.json.write_text(json.dumps(result, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(side: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(options: argparse.Namespace) -> dict[str, float]:
    import torch
    import torch.distributed as dist

    from irpo_nemo.training.logprobs import linear_logprobs

    torch.set_num_threads(options.threads)
    has_cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if has_cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if has_cuda else ("cpu", torch.float32)
    hidden = torch.randn(options.tokens, options.hidden, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(options.vocab, options.hidden, device=device, dtype=dtype) / 32).requires_grad_()
    targets = torch.randint(options.vocab, (options.tokens,), device=device)
    hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)  # there before the op, and touched

    def ours() -> Any:
        return linear_logprobs(hidden, weight, targets, vocab_size=options.vocab, tp_group=dist.group.WORLD)

    def naive() -> Any:
        logits = (hidden @ weight.t()).float()
        maximum = logits.detach().amax(dim=-1)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
        logits = logits - maximum[:, None]
        partition = logits.exp().sum(dim=-1)
        dist.all_reduce(partition.detach())
        return logits.gather(1, targets[:, None]).squeeze(1) - partition.log()

    before = peak_gib()
    seconds = [timed(ours if options.side == "ours" else naive) for _ in range(REPEATS)]
    return {"seconds": statistics.median(seconds[1:]), "extra_memory_gib": max(peak_gib() - before, 1e-3)}


def timed(op: Callable[[], Any]) -> float:
    import torch

    started = time.perf_counter()
    op().sum().backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
