"""A whole run small enough for tests: every stage, two gloo ranks, tensor parallel 2."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY_RUN = (
    "num_iterations=1",
    "task.arithmetic.num_train_problems=16",
    "task.arithmetic.num_test_problems=16",
    "task.arithmetic.num_demonstrations=64",
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.ffn_hidden_size=48",
    "model.max_position_embeddings=256",
    "sft.global_batch_size=16",
    "sft.max_tokens_per_micro_batch=1000",
    "sft.max_steps=6",
    "sft.optimizer.warmup_steps=2",
    "sft.checkpoint_every_steps=2",
    "sampling.num_candidates=4",
    "sampling.max_new_tokens=24",
    "evaluation.num_samples=4",
    "sampler.problems_per_part=4",
    # M_0 is too weak to solve anything, so the worked solutions are the winners.
    "pairing.gold_solutions=true",
    "pairing.num_pairs_per_problem=2",
    "training.global_batch_size=8",
    "training.max_tokens_per_micro_batch=1000",
    "training.max_steps=4",
    "training.optimizer.warmup_steps=1",
    "training.checkpoint_every_steps=2",
)


def start_run(root: Path, *overrides: str, config: str = "quickstart") -> "subprocess.Popen[bytes]":
    """Start `irpo run` with the run folder `root`/run; its output goes to `root`/output.txt."""
    root.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "irpo_nemo", "run", config, f"run_root={root}", "name=run", *overrides]
    with (root / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def finish_run(root: Path, *overrides: str, config: str = "quickstart") -> str:
    """Run to the end; return what it printed."""
    (root / "output.txt").unlink(missing_ok=True)
    code = start_run(root, *overrides, config=config).wait(timeout=600)
    output = (root / "output.txt").read_text()
    assert code == 0, output
    return output


def kill_when(process: "subprocess.Popen[bytes]", happens: Callable[[], bool], *, delay_seconds: float) -> bool:
    """SIGKILL the launcher `delay_seconds` after something happens; False when the run ended before."""
    while process.poll() is None:
        if happens():
            time.sleep(delay_seconds)
            break
        time.sleep(0.005)
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def results_without_times(root: Path, name: str = "run") -> dict[str, Any]:
    """results.json, without wall times."""
    return drop_times(json.loads((root / name / "report" / "results.json").read_text()))


def drop_times(value: Any) -> Any:
    """A JSON value without what `seconds` holds."""
    if isinstance(value, dict):
        return {key: drop_times(inner) for key, inner in value.items() if key != "seconds"}
    return [drop_times(inner) for inner in value] if isinstance(value, list) else value
