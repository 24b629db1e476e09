"""Rows of problem files: JSON lines, folders of JSON files, and Hugging Face data sets; and what stands in a row.

A row comes with its place ("file:line"), so that an error can name it. Numbers arrive as the text they were written
with.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from irpo_nemo.errors import DataError, MachineError

Row = dict[str, Any]


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


def take_optional_text(row: Row, key: str) -> str | None:
    """The text at `key`, or None when the row has none.

    Raises:
        DataError: It is empty or not text.
    """
    return None if row.get(key) is None else take_text(row, key)


def take_choices(row: Row) -> tuple[list[str], list[str]]:
    """The labels and texts of the options at "choices".

    Three layouts are known: [{"label": "A", "text": "ice"}, ...], {"label": ["A", ...], "text": ["ice", ...]}, and the
    bare texts ["ice", ...], which are labelled A, B, C and so on.

    Raises:
        DataError: It is none of these, or has fewer than two options.
    """
    options = _split_choices(row.get("choices"))
    if len(options) < 2:
        raise DataError(
            f"'choices' is {json.dumps(row.get('choices'))[:60]}, but two options or more are wanted, "
            'as [{"label": "A", "text": "ice"}, ...] or ["ice", ...].'
        )
    return [take_text(option, "label") for option in options], [take_text(option, "text") for option in options]


def _split_choices(choices: Any) -> list[Row]:
    if isinstance(choices, dict):
        labels, texts = choices.get("label"), choices.get("text")
        if isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts):
            return [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
    elif isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        return choices
    elif isinstance(choices, list):
        return [{"label": chr(ord("A") + index), "text": text} for index, text in enumerate(choices)]
    return []


def show_choices(question: str, labels: list[str], texts: list[str]) -> str:
    """The question with one line "(A) text" an option, as the paper's prompt has it."""
    return "\n".join([question, *(f"({label}) {text}" for label, text in zip(labels, texts, strict=True))])


def is_local(path: str) -> bool:
    """Whether `path` names a file or folder here; "owner/name" that is none is a Hugging Face data set."""
    looks_like_file = (
        path.endswith((".jsonl", ".json", ".gz")) or path.startswith(("/", ".", "~")) or path.count("/") != 1
    )
    return looks_like_file or Path(path).exists()


def read_rows(path: str, *, subset: str | None, split: str) -> Iterator[tuple[str, Row]]:
    """Yield the place and the row of each problem of a file, a folder or a data set ("owner/name[:subset]").

    Args:
        subset: The configuration of a data set whose name brings none.
        split: The split of a data set.

    Raises:
        DataError: It cannot be read.
        MachineError: A data set is named, but the package `datasets` is missing.
    """
    if not is_local(path):
        name, _, own_subset = path.partition(":")
        return read_data_set(name, own_subset or subset, split)
    return read_json_folder(Path(path)) if Path(path).is_dir() else read_json_lines(Path(path))


def read_json_folder(folder: Path) -> Iterator[tuple[str, Row]]:
    """Yield the place and the object of each .json file below a folder; 2.json before 10.json.

    A row without "id" gets its path as one, from the folder's own name on: "train/algebra/1.json".

    Raises:
        DataError: The folder holds no such file, or one that is not a JSON object.
    """
    paths = sorted(folder.rglob("*.json"), key=lambda path: (path.parent.parts, len(path.stem), path.stem))
    if not paths:
        raise DataError(f"{folder}: holds no .json files; wanted one problem a file. Or name a file of JSON lines.")
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}). Fetch or copy the file again.") from None
        row = _parse_object(text.strip(), str(path))
        yield str(path), {"id": f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}", **row}


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
        yield f"{name} {split}[{number}]", cast(Row, _numbers_as_text(row))


def _numbers_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers_as_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers_as_text(inner) for inner in value]
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
