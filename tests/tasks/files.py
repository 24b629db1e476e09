"""Problem files for tests: rows in the published formats, written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.config import IRPOConfig, TaskConfig
from irpo_nemo.errors import DataError
from irpo_nemo.tasks import Task, load_task

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside this checkout")


def make_task(name: str, train: Path | str, *, seed: int = 0, **options: Any) -> Task:
    paths = {"train_path": str(train), "test_path": str(train)}
    return load_task(IRPOConfig(seed=seed, task=TaskConfig(name=name, **{**paths, **options})))


def write_rows(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def error_of(task: Task) -> str:
    with pytest.raises(DataError) as error:
        task.train_problems()
    assert "\n" not in str(error.value)
    return str(error.value)
