"""How much of a long training run is progress when GPUs fail, and how often to save.

Failures come at random and independently, on average every `mean_hours` for the whole job (so n GPUs fail n times as
often as one). A failure loses what was done since the last checkpoint and costs a restart, during which the job can
fail again. The expectation is Daly's (2006, "A higher order estimate of the optimum checkpoint interval", equation 13);
the simulation draws the same process and is what the test compares it with.
"""

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Seconds throughout."""

    mean: float
    """Between two failures of the job."""
    checkpoint: float
    """Training stands still while a checkpoint is written."""
    restart: float
    """From a failure to the first new step."""


def expected_goodput(failures: Failures, *, interval: float) -> float:
    """Share of the time that ends as progress, with a checkpoint after every `interval` seconds of work."""
    # M exp(R / M) (exp((interval + checkpoint) / M) - 1) is what an interval takes; expm1 keeps it exact for rare ones.
    taken = failures.mean * math.exp(failures.restart / failures.mean)
    exponent = (interval + failures.checkpoint) / failures.mean
    return interval / (taken * math.expm1(exponent)) if exponent < 700 else 0.0


def best_interval(failures: Failures) -> float:
    """Seconds of work between checkpoints that lose least: (1 - t / M) exp((t + c) / M) = 1, found by halving.

    Close to Young's sqrt(2 c M) where failures are rare.
    """
    low, high = 0.0, failures.mean
    for _ in range(200):
        middle = (low + high) / 2
        slope = math.log1p(-middle / failures.mean) + (middle + failures.checkpoint) / failures.mean
        low, high = (middle, high) if slope > 0 else (low, middle)
    return (low + high) / 2


def simulate_seconds(work: float, failures: Failures, *, interval: float, rng: random.Random) -> float:
    """Wall time of one run of `work` seconds, with failures drawn from `rng`."""
    time, done, next_failure = 0.0, 0.0, rng.expovariate(1 / failures.mean)
    while done < work:
        piece = min(interval, work - done)
        ends = time + piece + failures.checkpoint
        if ends <= next_failure:
            time, done = ends, done + piece
            continue
        time = next_failure
        while True:  # a restart can fail, too
            next_failure = time + rng.expovariate(1 / failures.mean)
            if time + failures.restart <= next_failure:
                time += failures.restart
                break
            time = next_failure
    return time


def simulate_chain(
    stages: list[float], failures: Failures, *, interval: float, seed: int, runs: int = 200
) -> tuple[float, float]:
    """Wall time of training stages one after the other: the mean, and what 95 of 100 runs stay under.

    Args:
        stages: Seconds of work of each; every stage ends with a checkpoint.
        failures: The job's.
        interval: Seconds of work between checkpoints.
        seed: Of the draws.
        runs: How often the chain is drawn.
    """
    rng = random.Random(seed)
    totals = sorted(
        sum(simulate_seconds(work, failures, interval=interval, rng=rng) for work in stages) for _ in range(runs)
    )
    return sum(totals) / runs, totals[math.ceil(0.95 * runs) - 1]
