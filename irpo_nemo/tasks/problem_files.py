"""Tasks whose problems stand in a JSON-lines file or in a Hugging Face data set, one question a row.

`FileTask` does all that such tasks share; each says how a row becomes a problem, and brings its prompt and grader.
"""

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from irpo_nemo.config import TaskConfig
from irpo_nemo.errors import DataError, MachineError
from irpo_nemo.grading import GRADERS
from irpo_nemo.records import Problem

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FileTask:
    """Problems from files. Numbers in JSON arrive as the text they were written with."""

    config: TaskConfig
    prompt_template: str
    grader: str
    read_problem: Callable[[Row], Problem]
    """Turns a row into a problem; its problem_id may be "" for the row's place. Raises DataError without a place."""
    subset: str | None = None
    """The configuration name of a Hugging Face data set."""

    def train_problems(self) -> list[Problem]:
        return self._load(self.config.train_path, "train", self.config.max_train_problems)

    def test_problems(self) -> list[Problem]:
        return self._load(self.config.test_path, "test", self.config.max_test_problems)

    def prompt(self, problem: Problem) -> str:
        return self.prompt_template.replace("{question}", problem.question)

    def demonstrations(self) -> Iterator[tuple[str, str]]:
        for problem in self.train_problems():
            completion = self.gold_completion(problem)
            if completion is not None:
                yield self.prompt(problem), completion

    def gold_completion(self, problem: Problem) -> str | None:
        if problem.solution is None:
            return None
        separator = "" if self.prompt_template[-1:].isspace() else " "
        return separator + problem.solution

    def data_files(self) -> list[Path]:
        paths = [self.config.train_path, self.config.test_path]
        return [Path(path) for path in paths if path is not None and is_local(path)]

    def _load(self, path: str | None, split: str, limit: int | None) -> list[Problem]:
        if path is None:
            raise DataError(f"task.{split}_path: is null; name a file or a Hugging Face data set.")
        rows = read_json_lines(Path(path)) if is_local(path) else read_data_set(path, self.subset, split)
        problems: list[Problem] = []
        places: dict[str, str] = {}
        for place, row in itertools.islice(rows, limit):
            problem = self._read_row(place, row, fallback_id=f"{split}-{len(problems)}")
            if problem.problem_id in places:
                raise DataError(
                    f"{place}: id {problem.problem_id!r} was already used at {places[problem.problem_id]}. "
                    "Give every row its own id, or leave ids out."
                )
            places[problem.problem_id] = place
            problems.append(problem)
        if not problems:
            raise DataError(f"{path}: holds no problems; wanted one JSON object a line.")
        return problems

    def _read_row(self, place: str, row: Row, *, fallback_id: str) -> Problem:
        try:
            problem = self.read_problem(row)
            GRADERS[self.grader].check_gold(problem)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        return problem if problem.problem_id else replace(problem, problem_id=fallback_id)


def take_text(row: Row, key: str) -> str:
    """The text at `key` of a row, stripped.

    Raises:
        DataError: It is missing, empty or not text.
    """
    if key not in row:
        raise DataError(f"has no {key!r}; found {', '.join(map(repr, row)) or 'nothing'}. Add it, or rename that key.")
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{key!r} is {json.dumps(value)[:60]}, but text is wanted. Write it in double quotes.")
    if not value.strip():
        raise DataError(f"{key!r} is empty. Fill it in, or delete the row.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{key!r} holds half a surrogate pair, which is no character. Mend the row's \\u escapes.")
    return value.strip()


def is_local(path: str) -> bool:
    """Whether `path` names a file here; "owner/name" that is no file is a Hugging Face data set."""
    looks_like_file = (
        path.endswith((".jsonl", ".json", ".gz")) or path.startswith(("/", ".", "~")) or path.count("/") != 1
    )
    return looks_like_file or Path(path).exists()


def read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    r"""Yield the place ("file:line") and the object of each line; empty lines are passed over.

    Lines end at "\n" only: str.splitlines would also split at characters that JSON strings may hold.

    Raises:
        DataError: The file is missing, damaged, or a line is not a JSON object.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parse_object(line.strip(), f"{path}:{number}")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Set task.train_path and task.test_path to files that exist.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: after line {number} comes text that is not UTF-8. Save the file as UTF-8.") from None
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{path}: cannot be read after line {number} ({error}). Fetch or copy the file again."
        ) from None


def _parse_object(line: str, place: str) -> Row:
    try:
        row = json.loads(line, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        shown = line if len(line) <= 60 else f"{line[:40]} ... {line[-15:]}"
        raise DataError(
            f"{place}: is not JSON ({error.msg}, column {error.colno}): {shown}. "
            "Mend or delete the line; if it is the last one, the file may be cut off."
        ) from None
    except RecursionError:
        raise DataError(f"{place}: is nested too deeply. Wanted a JSON object of texts.") from None
    if not isinstance(row, dict):
        raise DataError(f'{place}: is {line[:60]}, but a JSON object is wanted, as {{"question": ...}}.')
    return row


def read_data_set(name: str, subset: str | None, split: str) -> Iterator[tuple[str, Row]]:
    """Yield the place and the row of each row of a Hugging Face data set.

    Raises:
        MachineError: The package `datasets` is missing.
        DataError: The data set cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise MachineError(
            f"{name}: reading a Hugging Face data set needs the package datasets. "
            "Install it with pip install 'irpo-nemo[data]', or set task.train_path and task.test_path to local files."
        ) from None
    try:
        rows = load_dataset(name, subset, split=split)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name}: cannot be loaded from Hugging Face ({reason}). Check the name and the network, or set "
            "task.train_path and task.test_path to local files."
        ) from error
    for number, row in enumerate(rows):
        yield f"{name} {split}[{number}]", {key: _number_as_text(value) for key, value in cast(Row, row).items()}


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
