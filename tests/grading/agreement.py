"""How often verdicts agree with labels: the rows of the labelled files in shared/data, and a table of counts.

Nothing here decides what is right; the tests and tools/grading_agreement.py do.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.errors import DataError
from irpo_nemo.grading import GRADERS
from tests.grading.problems import gold_problem

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside this checkout")


def read_rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file, gzipped or not."""
    opener = gzip.open if name.endswith(".gz") else open
    with opener(DATA / name, "rt", encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


@dataclass
class Agreement:
    """Verdicts of one grader against one kind of label."""

    name: str
    num_rows: int = 0
    false_positives: list[str] = field(default_factory=list)
    """Keys of rows graded correct that the label calls wrong."""
    false_negatives: list[str] = field(default_factory=list)
    """Keys of rows that the label calls right and the grader does not."""

    @property
    def share(self) -> float:
        return 1 - (len(self.false_positives) + len(self.false_negatives)) / max(1, self.num_rows)


MEASURED: list[Agreement] = []
"""All that was measured in this process, for the end of the test report."""


def measure(name: str, items: Iterable[tuple[str, bool, bool | None]]) -> Agreement:
    """Count agreement over (key, graded correct, label); rows without a label are left out."""
    agreement = Agreement(name)
    for key, is_correct, label in items:
        if label is None:
            continue
        agreement.num_rows += 1
        if is_correct and not label:
            agreement.false_positives.append(key)
        elif label and not is_correct:
            agreement.false_negatives.append(key)
    MEASURED.append(agreement)
    return agreement


def format_table(agreements: Iterable[Agreement]) -> str:
    """One line for each label of each file."""
    lines = [f"{'file and label':56} {'rows':>6} {'agree':>8} {'false +':>8} {'false -':>8}"]
    for one in agreements:
        false_positives, false_negatives = len(one.false_positives), len(one.false_negatives)
        lines.append(f"{one.name:56} {one.num_rows:6} {one.share:8.2%} {false_positives:8} {false_negatives:8}")
    return "\n".join(lines)


def is_graded_correct(grader: str, gold: str, text: str) -> bool:
    """Whether the grader calls the answer of `text` correct; an unusable gold answer makes nothing correct."""
    try:
        return GRADERS[grader].grade(gold_problem(gold), text).verdict == "correct"
    except DataError:
        return False


def output_key(row: dict[str, Any]) -> str:
    """Names a row of the output files."""
    return f"{row['qid']} {row['model']}" + (f" #{row['sample']}" if row.get("sample") is not None else "")


def grade_outputs(
    file_name: str, grader: str, *, text: str, label: Callable[[dict[str, Any]], bool | None]
) -> Iterator[tuple[str, bool, bool | None]]:
    """Grade the column `text` of a file."""
    for row in read_rows(file_name):
        yield output_key(row), is_graded_correct(grader, row["gold"], row[text]), label(row)


def gsm8k_outputs(label: Callable[[dict[str, Any]], bool | None]) -> Iterator[tuple[str, bool, bool | None]]:
    yield from grade_outputs("gsm8k_outputs.jsonl.gz", "numeric", text="response", label=label)


def math_outputs() -> Iterator[tuple[str, bool, bool | None]]:
    yield from grade_outputs("math_outputs.jsonl.gz", "latex", text="response", label=lambda row: row["correct"])


def openai_solutions() -> Iterator[tuple[str, bool, bool | None]]:
    yield from grade_outputs(
        "gsm8k_openai_solutions.jsonl.gz", "numeric", text="solution", label=lambda row: row["is_correct"]
    )


def real_pairs(label: Callable[[dict[str, Any]], bool | None]) -> Iterator[tuple[str, bool, bool | None]]:
    for row in read_rows("grader_real_pairs.jsonl"):
        yield f"{row['qid']} {row['pred']}", is_graded_correct("latex", row["gold"], boxed(row["pred"])), label(row)


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}" if answer.count("{") == answer.count("}") else f"Final answer: {answer}"


def grader_cases() -> Iterator[tuple[str, bool, bool | None]]:
    for row in read_rows("grader_cases.jsonl"):
        if row["kind"] in ("response_pair", "answer_pair", "gsm8k_response"):
            yield row["id"], is_graded_correct("latex", row["gold"] or "", row["pred"]), row["expected"]


def published_of_pair(row: dict[str, Any]) -> bool | None:
    """The published label of a real pair; None when there is none, or two that differ."""
    labels = {label.rpartition("=")[2] == "True" for label in row["published"]}
    return labels.pop() if len(labels) == 1 else None
