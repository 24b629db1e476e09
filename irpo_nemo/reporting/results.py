"""results.json: the numbers of a run, collected from what its stages left. Keys stay; adding is fine.

Everything but `seconds` is the same for a run that was interrupted and one that was not.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from irpo_nemo.artifacts import Manifest, read_json, read_manifest
from irpo_nemo.config import IRPOConfig
from irpo_nemo.reporting.completions import measure_completions
from irpo_nemo.run_folder import IterationFolder, RunFolder

SPLITS = ("train", "test")

_PLAIN_STAGES = ("sample", "grade", "pair", "trial", "select")
"""Those of an iteration whose time is not told by parts."""

_CURVES = (
    "loss/total",
    "loss/dpo",
    "loss/nll",
    "logprob/chosen",
    "logprob/rejected",
    "reward/margin",
    "reward/accuracy",
)


def collect_results(folder: RunFolder, config: IRPOConfig) -> dict[str, Any]:
    """The content of results.json, of what is done so far."""
    iterations = []
    for index in range(config.num_iterations + 1):
        iteration = folder.iteration(index)
        if read_manifest(iteration.manifest("grade")) is not None:
            iterations.append(_collect_iteration(index, iteration, config))
    return {
        "run": folder.root.resolve().name,
        "task": config.task.name,
        "seed": config.seed,
        "num_iterations": config.num_iterations,
        "model_zero": _collect_model_zero(folder),
        "iterations": iterations,
    }


def read_results(folder: RunFolder) -> dict[str, Any]:
    """The results.json that the report stage wrote."""
    return dict(read_json(folder.results))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, a line that is still being written aside; none when there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _collect_iteration(index: int, folder: IterationFolder, config: IRPOConfig) -> dict[str, Any]:
    evaluation = read_json(folder.evaluation)
    is_trained = read_manifest(folder.manifest("train")) is not None
    metrics = read_metrics(folder.train.metrics) if is_trained else []
    has_pairs = read_manifest(folder.manifest("pair")) is not None
    pairs = read_json(folder.pairs_summary) if has_pairs else None
    return {
        "iteration": index,
        **evaluation,
        "train_sample_accuracy": _train_sample_accuracy(folder),
        "num_pairs": pairs["num_pairs"] if pairs else None,
        "pairs": pairs,
        "loss": _first_and_last(metrics),
        "candidates": _count_candidates(folder),
        "selection": read_json(folder.selection) if read_manifest(folder.manifest("select")) is not None else None,
        "taken_from": _find_origins(folder),
        "completions": {split: measure_completions(folder, split) for split in SPLITS},
        "seconds": _collect_seconds(folder),
        "cost": {"seconds": _collect_device_seconds(folder)},
        "tokens": _collect_tokens(folder) | _count_trained_tokens(metrics, config),
    }


def _collect_model_zero(folder: RunFolder) -> dict[str, Any] | None:
    """How M_0 was made, when this run made it."""
    manifest = read_manifest(folder.model_zero.manifest("sft"))
    if manifest is None:
        return None
    return {
        "examples": manifest.counts["examples"],
        "steps": manifest.counts["steps"],
        "loss": _first_and_last(read_metrics(folder.model_zero.train.metrics)),
        "seconds": manifest.seconds,
    }


def _train_sample_accuracy(folder: IterationFolder) -> float | None:
    """Share of correct ones among the candidates that pairs are made of."""
    manifest = read_manifest(folder.manifest("grade"))
    assert manifest is not None, "only graded iterations are collected"
    verdicts = manifest.counts["verdicts"].get("train", {}).get("sample", {})
    return verdicts.get("correct", 0) / sum(verdicts.values()) if verdicts else None


def _first_and_last(metrics: list[dict[str, Any]]) -> dict[str, dict[str, float]] | None:
    """Each curve's first and last value."""
    if not metrics:
        return None
    names = [name for name in _CURVES if metrics[0].get(name) is not None]
    return {name: {"first": metrics[0][name], "last": metrics[-1][name]} for name in names}


def _collect_seconds(folder: IterationFolder) -> dict[str, float]:
    """Wall time by stage; training by its parts. Of all starts for sampling, else of the last one."""
    seconds = {}
    for stage in _PLAIN_STAGES:
        if manifest := read_manifest(folder.manifest(stage)):
            seconds[stage] = manifest.seconds["total"] + _seconds_elsewhere(manifest, "wall")
    if manifest := read_manifest(folder.manifest("train")):
        seconds |= {part: value for part, value in manifest.seconds.items() if part != "total"}
        seconds["train_stage"] = manifest.seconds["total"]
    return seconds


def _count_candidates(folder: IterationFolder) -> dict[str, int] | None:
    """Training candidates drawn, and those that rounds could have drawn; None for M_T."""
    manifest = read_manifest(folder.manifest("sample"))
    counts = manifest.counts["splits"].get("train") if manifest else None
    return {"drawn": counts["completions"], "possible": counts["completions"] + counts["spared"]} if counts else None


def _collect_device_seconds(folder: IterationFolder) -> dict[str, dict[str, float]]:
    """By stage that this run did itself: wall time x processor cores, and x GPUs, that its starts had."""
    return {stage: _device_seconds(manifest) for stage, manifest in _manifests(folder) if manifest.taken_from is None}


def _find_origins(folder: IterationFolder) -> dict[str, str]:
    """By stage that another run has done: that run."""
    return {stage: manifest.taken_from for stage, manifest in _manifests(folder) if manifest.taken_from is not None}


def _manifests(folder: IterationFolder) -> Iterator[tuple[str, Manifest]]:
    """The stages that are done, with their manifests."""
    for stage in (*_PLAIN_STAGES, "train"):
        if (manifest := read_manifest(folder.manifest(stage))) is not None:
            yield stage, manifest


def _device_seconds(manifest: Manifest) -> dict[str, float]:
    devices = manifest.counts.get("devices", {})
    seconds = manifest.seconds["total"]
    return {name: number * seconds + _seconds_elsewhere(manifest, name) for name, number in devices.items()}


def _seconds_elsewhere(manifest: Manifest, name: str) -> float:
    """What shards and starts that were ended early have added: `wall`, or a device."""
    return float(manifest.counts.get("seconds_elsewhere", {}).get(name, 0.0))


def _collect_tokens(folder: IterationFolder) -> dict[str, int]:
    manifest = read_manifest(folder.manifest("sample"))
    return {"sampled": manifest.counts["tokens"]} if manifest else {}


def _count_trained_tokens(metrics: list[dict[str, Any]], config: IRPOConfig) -> dict[str, int]:
    """Tokens that training went through, prompts included; a last step with fewer pairs counts as a whole one."""
    per_pair = [
        line["tokens_per_second"] / line["pairs_per_second"] for line in metrics if line.get("pairs_per_second")
    ]
    return {"trained": round(sum(per_pair) * config.training.global_batch_size)} if per_pair else {}
