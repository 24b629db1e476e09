"""Rows of model outputs: from a line of a file to a completion and the problem that it is graded against."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from irpo_nemo.errors import DataError
from irpo_nemo.records import Problem
from irpo_nemo.tasks.hendrycks_math import find_boxes, read_gold_answer
from irpo_nemo.tasks.rows import take_choices

Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class InputRow:
    """A row as it was read."""

    place: str
    """file:line"""
    fields: Fields


def open_lines(path: Path) -> BinaryIO:
    """Open a file, compressed or not, to read its lines."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def read_rows(path: Path, note_position: Callable[[int], None] | None = None) -> Iterator[InputRow]:
    """Yield the rows of a file of JSON lines; empty lines are passed over.

    Args:
        note_position: Told now and then how many bytes of the file are read.

    Raises:
        DataError: The file cannot be read, or a line is not a JSON object.
    """
    number = 0
    try:
        with path.open("rb") as raw, cast(BinaryIO, gzip.open(raw)) if path.suffix == ".gz" else raw as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    if note_position is not None:
                        note_position(raw.tell())
                    yield InputRow(place=f"{path}:{number}", fields=_parse_row(line, f"{path}:{number}"))
    except (EOFError, zlib.error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"{path}: cannot be read after line {number} ({reason}). Look at its name and content."
        ) from None


def _parse_row(line: bytes, place: str) -> Fields:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode().strip())
    except UnicodeDecodeError:
        raise DataError(f"{place}: is not UTF-8. Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        shown = line.decode(errors="replace").strip()
        raise DataError(f"{place}: is not JSON ({error}): {shown[:60]}. Mend or delete the line.") from None
    if not isinstance(row, dict):
        raise DataError(f'{place}: is {json.dumps(row)[:60]}, but {{"response": ..., "gold": ...}} is wanted.')
    return row


ProblemReader = Callable[[Fields, str], Problem]
"""Makes a problem of a row and its gold answer."""


def read_item(row: InputRow, read_problem: ProblemReader) -> tuple[Problem, str]:
    """The problem, named by the row's place, and the completion.

    Raises:
        DataError: The row lacks one of them.
    """
    try:
        response, gold = _take(row.fields, "response"), _take(row.fields, "gold")
        if not isinstance(response, str):
            raise DataError(f"'response' is {json.dumps(response)[:60]}, but text is wanted.")
        if not isinstance(gold, (str, int, float)) or isinstance(gold, bool):
            raise DataError(f"'gold' is {json.dumps(gold)[:60]}, but text or a number is wanted.")
        problem = read_problem(row.fields, str(gold).strip())
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from None
    return replace(problem, problem_id=row.place), response


def _take(fields: Fields, name: str) -> Any:
    if name not in fields:
        raise DataError(
            f"has no {name!r}; found {', '.join(map(repr, fields)) or 'nothing'}. Add it, or rename that key."
        )
    return fields[name]


def _read_gsm8k(fields: Fields, gold: str) -> Problem:  # noqa: ARG001
    """The gold answer may be a whole solution that ends in "#### 72"."""
    return Problem(problem_id="", question="", gold_answer=gold.rpartition("####")[2].strip())


def _read_hendrycks_math(fields: Fields, gold: str) -> Problem:
    r"""The gold answer may be a whole solution with its answer in \boxed."""
    if find_boxes(gold):
        question = next((fields[name] for name in ("problem", "question") if isinstance(fields.get(name), str)), "")
        gold = read_gold_answer(question, gold)
    return Problem(problem_id="", question="", gold_answer=gold)


def _read_arc_challenge(fields: Fields, gold: str) -> Problem:
    """The gold answer is a label, or an option's own text."""
    labels, texts = _read_options(fields)
    if gold not in labels and texts.count(gold) == 1:
        gold = labels[texts.index(gold)]
    return Problem(problem_id="", question="", gold_answer=gold, choice_labels=labels, choices=texts)


def _read_options(fields: Fields) -> tuple[list[str], list[str]]:
    """Labels and texts, each empty when the row does not say."""
    labels = fields.get("labels") or []
    if isinstance(labels, str):  # "ABCD", "A, B, C, D"
        labels = re.findall(r"\w", labels)
    if not isinstance(labels, list):
        raise DataError(f'\'labels\' is {json.dumps(labels)[:60]}, but a list is wanted, as ["A", "B", "C", "D"].')
    labels = [str(label) for label in labels]
    if not fields.get("choices"):
        return labels, []
    own_labels, texts = take_choices({"choices": _numbers_as_text(fields["choices"])})
    if labels and len(labels) != len(texts):
        raise DataError(f"has {len(labels)} 'labels', but {len(texts)} 'choices'. Mend one of them.")
    return labels or own_labels, texts


def _numbers_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers_as_text(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_numbers_as_text(inner) for inner in value]
    return str(value) if isinstance(value, (int, float)) else value


PROBLEM_READERS: dict[str, ProblemReader] = {
    "arc_challenge": _read_arc_challenge,
    "gsm8k": _read_gsm8k,
    "hendrycks_math": _read_hendrycks_math,
}
