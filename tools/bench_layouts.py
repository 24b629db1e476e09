#!/usr/bin/env python
"""Training throughput and memory of the same pairs in several layouts, each beside the first one named.

    tools/bench_layouts.py tp1 tp2 pp2 pp2xvpp2 dp2 --json layouts.json
    tools/bench_layouts.py tp1 tp1,alone tp1,padded cp2

A layout joins sizes with x: tp, sp (sequence parallel over as many ranks), pp, vpp (virtual stages), cp and dp. After
a comma come options: `alone` shares no prompts, `padded` packs nothing, `recompute` keeps each layer's input only,
`by_problem` orders problems. Each layout runs in processes of its own, one after the other, `--rounds` times; the first
two steps of a process are not counted. Peak memory is that of the rank that needs most: the process's resident memory
on a CPU, allocated memory on a GPU. Models and pairs are those of `bench_training.py`.
"""

import argparse
import json
import os
import platform
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_training import (
    LEARNING_RATE,
    SHAPES,
    WARM_UP_STEPS,
    make_model,
    make_pairs,
    mean_tokens,
    peak_gib,
    time_our_steps,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "alone": {"share_prompts": False},
    "padded": {"pack": False},
    "recompute": {"recompute_activations": True},
    "by_problem": {"order": "by_problem"},
}


def main() -> None:
    options = parse_arguments()
    if options.folder:
        measure(options)
        return
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(options, Path(folder))
        for number in range(options.rounds):
            rounds.append({layout: run_layout(layout, Path(folder)) for layout in options.layouts})
            print(
                f"round {number + 1}: " + "; ".join(f"{name} {describe(found)}" for name, found in rounds[-1].items())
            )
    report(rounds, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="+", type=checked_layout, metavar="LAYOUT")
    parser.add_argument("--model", choices=SHAPES, default="35m")
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--pairs-per-problem", type=int, default=10)
    parser.add_argument("--prompt-tokens", type=int, default=115, help="mean")
    parser.add_argument("--completion-tokens", type=int, default=95, help="mean")
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--max-tokens", type=int, default=2048, help="tokens that a rank computes at once")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def checked_layout(text: str) -> str:
    try:
        sizes_of(text)
    except (AttributeError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no layout, such as tp2xpp2 or tp1,alone") from error
    return text


def sizes_of(layout: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes by their short names, and options of TrainingConfig."""
    sizes, *names = layout.split(",")
    parts = [re.fullmatch(r"(tp|sp|pp|vpp|cp|dp)(\d+)", part) for part in sizes.split("x")]
    training = {key: value for name in names for key, value in OPTIONS[name].items()}
    return {part[1]: int(part[2]) for part in parts}, training  # type: ignore[index]


def count_ranks(layout: str) -> int:
    sizes, _ = sizes_of(layout)
    tensor = sizes.get("sp") or sizes.get("tp", 1)
    return tensor * sizes.get("pp", 1) * sizes.get("cp", 1) * sizes.get("dp", 1)


def run_layout(layout: str, folder: Path) -> dict[str, float]:
    """Start the layout's ranks under torchrun, and wait."""
    result = folder / "result.json"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count_ranks(layout)}"]
    own = [word for word in sys.argv[1:] if word not in parse_arguments().layouts]
    command = [*start, __file__, layout, *own, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{layout}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(result.read_text())  # type: ignore[no-any-return]


def measure(options: argparse.Namespace) -> None:
    """On each rank: train some steps of the layout; rank 0 writes what they took."""
    import torch
    import torch.distributed as dist

    from irpo_nemo.training.parallel import shutdown_parallel

    torch.set_num_threads(options.threads)
    rows = make_pairs(options)[: options.batch * (options.steps + WARM_UP_STEPS)]
    random.Random(1).shuffle(rows)
    seconds, loss = time_our_steps(make_config(options), rows, options)
    peaks = [0.0] * dist.get_world_size()
    dist.all_gather_object(peaks, peak_gib())
    per_step = statistics.median(seconds[WARM_UP_STEPS:])
    if dist.get_rank() == 0:
        found = {
            "ranks": dist.get_world_size(),
            "pairs_per_second": options.batch / per_step,
            "tokens_per_second": mean_tokens(rows, options) / per_step,
            "seconds_per_step": per_step,
            "peak_memory_gib": max(peaks),
            "loss": loss,
        }
        (options.folder / "result.json").write_text(json.dumps(found))
    shutdown_parallel()


def make_config(options: argparse.Namespace) -> Any:
    import torch

    from irpo_nemo.config import IRPOConfig, OptimizerConfig, ParallelConfig, TrainingConfig

    sizes, training = sizes_of(options.layouts[0])
    return IRPOConfig(
        training=TrainingConfig(
            global_batch_size=options.batch,
            max_tokens_per_micro_batch=options.max_tokens,
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
            bf16=torch.cuda.is_available(),
            **training,
        ),
        parallel=ParallelConfig(
            tensor_model_parallel_size=sizes.get("sp") or sizes.get("tp", 1),
            sequence_parallel="sp" in sizes,
            pipeline_model_parallel_size=sizes.get("pp", 1),
            virtual_pipeline_model_parallel_size=sizes.get("vpp", 1),
            context_parallel_size=sizes.get("cp", 1),
        ),
    )


def describe(found: dict[str, float]) -> str:
    return f"{found['pairs_per_second']:.2f} pairs/s, {found['peak_memory_gib']:.2f} GiB"


def report(rounds: list[dict[str, dict[str, float]]], options: argparse.Namespace) -> None:
    """Medians over the rounds; ratios are to the first layout in the same round."""
    first = options.layouts[0]

    def median_of(layout: str, key: str) -> float:
        return statistics.median(found[layout][key] for found in rounds)

    def ratio(layout: str, key: str) -> float:
        return statistics.median(found[layout][key] / found[first][key] for found in rounds)

    medians = {layout: {key: median_of(layout, key) for key in rounds[0][first]} for layout in options.layouts}
    ratios = {
        layout: {"pairs_per_second": ratio(layout, "pairs_per_second"), "peak_memory": ratio(layout, "peak_memory_gib")}
        for layout in options.layouts
    }
    print(f"\n{'layout':20}{'ranks':>6}{'pairs/s':>10}{'tokens/s':>10}{'GiB a rank':>12}{'x pairs/s':>11}{'x GiB':>8}")
    for layout, found in medians.items():
        print(
            f"{layout:20}{found['ranks']:6.0f}{found['pairs_per_second']:10.2f}{found['tokens_per_second']:10.0f}"
            f"{found['peak_memory_gib']:12.2f}{ratios[layout]['pairs_per_second']:11.2f}"
            f"{ratios[layout]['peak_memory']:8.2f}"
        )
    if options.json:
        result = {
            "ours": medians,
            "theirs": medians[first],
            "ratio": ratios,
            "rounds": rounds,
            "versions": {name: version(name) for name in ("torch", "megatron-core")},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads a rank",
            "command": shlex.join(sys.argv),
        }
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
