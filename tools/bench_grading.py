#!/usr/bin/env python
"""Verdicts a second of the numeric and the LaTeX grader, alone and with one hostile answer in a hundred.

    tools/bench_grading.py --json grading.json

Grades real model outputs (`gsm8k_outputs.jsonl.gz`, `math_outputs.jsonl.gz`: rows with "response" and "gold") where
`--data` has them, else generated ones, in the pool that stages use, with its defaults. Rounds take turns: the clean
set, then the same set with every hundredth answer replaced by one of `tests/grading/hostile.py`; the loss is that of
the medians. Hostile answers are the ones that a sampler can give, of up to `--max-characters`. Starting the pool does
not count: it takes seconds once a stage.
"""

import argparse
import gzip
import itertools
import json
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from irpo_nemo.config import GradingConfig  # noqa: E402 - after the path
from irpo_nemo.grading.pool import GradingPool  # noqa: E402
from irpo_nemo.records import Problem  # noqa: E402
from tests.grading.hostile import hostile_completions  # noqa: E402

Item = tuple[Problem, str]

FILES = {"numeric": "gsm8k_outputs.jsonl.gz", "latex": "math_outputs.jsonl.gz"}
GOALS = {"numeric": 2000, "latex": 500}
"""Verdicts a second on 2 cores."""
HOSTILE_EVERY = 100


def main() -> None:
    options = parse_arguments()
    results = [measure(grader, options) for grader in FILES]
    for result in results:
        print(describe(result))
    if options.json:
        options.json.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real outputs")
    parser.add_argument("--answers", type=int, default=8000, help="answers of a round; the files are repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, help="child processes; one a core if not given")
    parser.add_argument("--deadline", type=float, default=GradingConfig().deadline_seconds, help="seconds an answer")
    parser.add_argument("--max-characters", type=int, default=20_000, help="of a hostile answer")
    return parser.parse_args()


def measure(grader: str, options: argparse.Namespace) -> dict[str, Any]:
    """Speeds of both sets, and what became of the hostile answers."""
    clean = list(itertools.islice(itertools.cycle(load_items(grader, options.data)), options.answers))
    mixed = mix_in(clean, [text for text in hostile_completions() if len(text) <= options.max_characters])
    speeds: dict[str, list[float]] = {"clean": [], "hostile": []}
    config = GradingConfig(num_workers=options.workers, deadline_seconds=options.deadline)
    with GradingPool(grader, config) as pool:
        run(pool, clean[:1000])
        for _ in range(options.rounds):
            for name, items in (("clean", clean), ("hostile", mixed)):
                speed, outcomes = run(pool, items)
                speeds[name].append(speed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "grader": grader,
        "data": FILES[grader] if (options.data / FILES[grader]).exists() else "generated",
        "answers": options.answers,
        "workers": pool.num_children,
        "deadline_seconds": options.deadline,
        "verdicts_per_second": medians["clean"],
        "verdicts_per_second_hostile": medians["hostile"],
        "loss": 1 - medians["hostile"] / medians["clean"],
        "all_rounds": speeds,
        "goal": GOALS[grader],
        "outcomes_hostile_round": outcomes,
    }


def run(pool: GradingPool, items: list[Item]) -> tuple[float, dict[str, int]]:
    """Verdicts a second, and counts of verdicts and of errors by layer."""
    started = time.perf_counter()
    grades = list(pool.grade(items))
    speed = len(items) / (time.perf_counter() - started)
    return speed, Counter(f"error: {g.layer}" if g.verdict == "error" else g.verdict for g in grades)


def load_items(grader: str, data: Path) -> list[Item]:
    path = data / FILES[grader]
    if not path.exists():
        return list(generate_items(grader))
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        rows = [json.loads(line) for line in file]
    return [(make_problem(str(number), row["gold"]), row["response"]) for number, row in enumerate(rows)]


def generate_items(grader: str) -> Iterator[Item]:
    """Two thousand answers with some reasoning before them, half of them right."""
    draw = random.Random(0)
    for number in range(2000):
        top, bottom = draw.randint(2, 99), draw.randint(2, 99)
        said = top if draw.random() < 0.5 else top + 1
        reasoning = " ".join(f"Step {step}: we add {draw.randint(1, 99)} to what we had." for step in range(12))
        if grader == "numeric":
            yield make_problem(str(number), str(top)), f"{reasoning}\nFinal answer: ${said}.00"
        else:
            gold, answer = rf"\frac{{{top}}}{{{bottom}}}\sqrt{{2}}", rf"\frac{{{said}\sqrt{{2}}}}{{{bottom}}}"
            yield make_problem(str(number), gold), rf"{reasoning} Therefore it is $\boxed{{{answer}}}$."


def make_problem(name: str, gold: str) -> Problem:
    return Problem(problem_id=name, question="", gold_answer=gold)


def mix_in(items: list[Item], hostile: list[str]) -> list[Item]:
    """Every hundredth answer is a hostile one, each in turn."""
    texts = itertools.cycle(hostile)
    return [
        (problem, next(texts) if number % HOSTILE_EVERY == HOSTILE_EVERY // 2 else text)
        for number, (problem, text) in enumerate(items)
    ]


def describe(result: dict[str, Any]) -> str:
    return (
        f"{result['grader']:8} {result['verdicts_per_second']:8.0f} verdicts/s (goal {result['goal']}), "
        f"{result['verdicts_per_second_hostile']:8.0f} with 1% hostile: {result['loss']:.1%} less; "
        f"{result['workers']} workers, {result['data']}; {dict(result['outcomes_hostile_round'])}"
    )


def describe_machine() -> dict[str, Any]:
    packages = {}
    for name in ("sympy", "math-verify", "latex2sympy2_extended", "antlr4-python3-runtime"):
        packages[name] = version(name)
    return {
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": packages,
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(sys.argv),
    }


if __name__ == "__main__":
    main()
