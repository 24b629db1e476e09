"""A run's curves as each tool has kept them: name -> {x: value}, read from its own files."""

import json
import os
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from irpo_nemo.run_folder import RunFolder, TrainFolder

Curves = dict[str, dict[int, float]]

_AXES = {"sft": "sft/step", "trial": "trial/step", "evaluation": "iteration"}
_BLOCK_BYTES = 32768
_PATIENCE_SECONDS = 30.0
"""W&B's own service writes the file, and may be at it for a moment after the run has ended."""
_RECORD_HEADER = struct.Struct("<IHB")


def tensorboard_curves(folder: RunFolder) -> Curves:
    """The trainings of all iterations, one after the other; trials and supervised fine-tuning with a prefix."""
    iterations = sorted(folder.root.glob("iteration_*"))
    curves = _concatenate("sft/", [folder.model_zero.train])
    curves |= _concatenate("trial/", [TrainFolder(iteration / "trial" / "train") for iteration in iterations])
    return curves | _concatenate("", [TrainFolder(iteration / "train") for iteration in iterations])


def _concatenate(prefix: str, folders: list[TrainFolder]) -> Curves:
    curves: Curves = defaultdict(dict)
    start = 0
    for folder in folders:
        events = _events(folder)
        for name, values in events.items():
            curves[f"{prefix}{name}"] |= {start + step: value for step, value in values.items()}
        start += len(events.get("loss/total", {}))
    return dict(curves)


def _events(folder: TrainFolder) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.tensorboard.exists():
        return {}
    events = EventAccumulator(str(folder.tensorboard), size_guidance={"scalars": 0})
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def wandb_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of the one offline run, each under its number `_step`, in the order of the file."""
    (path,) = folder.tracking.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while all(record.WhichOneof("record_type") != "exit" for record in wandb_records(path)):
        assert time.monotonic() < deadline, f"{path}: has no end"
        time.sleep(0.1)
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        | {"_step": record.history.step.num}
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def wandb_curves(folder: RunFolder) -> Curves:
    rows = wandb_rows(folder)
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    curves: Curves = defaultdict(dict)
    for row in rows:
        names = [name for name in row if not name.startswith("_")]
        prefix = next((p for p in _AXES if any(name.startswith(f"{p}/") for name in names)), None)
        axis = _AXES[prefix] if prefix else "training_step"
        for name in names:
            if name != axis:
                assert row[axis] not in curves[name], f"{name}: twice at {row[axis]}"
                curves[name][row[axis]] = row[name]
    return dict(curves)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: after 7 bytes, LevelDB's log format, each record a protobuf message."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), 7, b""
    while position + _RECORD_HEADER.size <= len(data):
        if _BLOCK_BYTES - position % _BLOCK_BYTES < _RECORD_HEADER.size:
            position += _BLOCK_BYTES - position % _BLOCK_BYTES
            continue
        _, length, kind = _RECORD_HEADER.unpack_from(data, position)
        position += _RECORD_HEADER.size
        if position + length > len(data):  # is being written
            return
        record += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


def mlflow_run(folder: RunFolder) -> tuple[Any, Any]:
    """A client of the run's own store, and the newest run in it."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=str((folder.tracking / "mlflow").resolve()))
    experiment = client.get_experiment_by_name("irpo")
    return client, client.search_runs([experiment.experiment_id])[0]


def mlflow_curves(folder: RunFolder) -> Curves:
    client, run = mlflow_run(folder)
    curves: Curves = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        curves[name] = {metric.step: metric.value for metric in history}
        assert len(curves[name]) == len(history), f"{name}: a step twice"
    return curves


def in_tensorboards_precision(curves: Curves, names: set[str]) -> Curves:
    """`curves` of these names as float32, which is what an event holds."""
    return {name: {x: float(np.float32(value)) for x, value in curves[name].items()} for name in names}


def assert_trackers_hold_what_tensorboard_holds(folder: RunFolder) -> None:
    """The same names, steps and values in all three."""
    board = tensorboard_curves(folder)
    assert board
    for curves in (wandb_curves(folder), mlflow_curves(folder)):
        own = {n for n in curves if n.startswith("evaluation/") or n.endswith(("iteration", "iteration_step"))}
        assert set(curves) - own == set(board)
        assert in_tensorboards_precision(curves, set(board)) == board
    assert wandb_curves(folder) == mlflow_curves(folder)
