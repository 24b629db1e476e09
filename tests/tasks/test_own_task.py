"""The example of a task in docs/tasks.md works as it stands there."""

import re
from pathlib import Path
from typing import Any

from irpo_nemo.config import IRPOConfig, TaskConfig
from tests.tasks.files import write_rows

TASKS = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_the_example_of_a_task_reads_its_rows(tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", TASKS.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    path = write_rows(tmp_path / "riddles.jsonl", {"q": "What has keys but opens no door?", "a": "A piano"})
    task = names["make_riddles_task"](IRPOConfig(task=TaskConfig(train_path=str(path))))
    (problem,) = task.train_problems()
    assert problem.gold_answer == "A piano"
    assert "\nQuestion: What has keys but opens no door?\nSolution:" in task.prompt(problem)
