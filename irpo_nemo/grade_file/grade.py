r"""Grading a file of model outputs, row by row, so that it can be interrupted.

Rows go to OUTPUT.<task>.partial beside OUTPUT, which is renamed when the last is graded, so OUTPUT is whole or absent.
An interrupted run goes on after the last whole line of it, once its rows have proved to be those of INPUT. Nothing but
the pool's window of rows is held in memory.
"""

import fcntl
import gzip
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from irpo_nemo.artifacts import explain_os_errors, write_atomically
from irpo_nemo.config import GradingConfig, IRPOConfig, TaskConfig
from irpo_nemo.errors import ArtifactError, ConfigError, DataError
from irpo_nemo.grade_file.rows import PROBLEM_READERS, Fields, InputRow, ProblemReader, open_lines, read_item, read_rows
from irpo_nemo.grade_file.tally import Meter, Tally
from irpo_nemo.grading import Grade
from irpo_nemo.grading.pool import GradingPool
from irpo_nemo.grading.self_test import check_grader
from irpo_nemo.records import Problem
from irpo_nemo.tasks import load_task

_ADDED = ("answer", "verdict", "layer", "audit_answer", "audit_verdict")
_FLUSH_SECONDS = 1.0
_BLOCK = 1 << 16


def grade_file(task: str, source: Path, output: Path, config: GradingConfig) -> Tally:
    """Grade every row of `source` into `output`, or what an interrupted run left to do; count all rows.

    Args:
        task: A key of `PROBLEM_READERS`.

    Raises:
        ConfigError: There is no such task, or its grader has no auditor.
        DataError: A row of `source` cannot be graded; what was graded before is kept.
        ArtifactError: `output`, or what is there of it, was not made from `source`.
        MachineError: The grader fails its self-test.
    """
    if task not in PROBLEM_READERS:
        raise ConfigError(f"--task: is {task}, but must be one of {', '.join(PROBLEM_READERS)}")
    if not source.exists():
        raise DataError(f"{source}: no such file.")
    if output.exists() and output.samefile(source):
        raise ConfigError(f"{output}: is INPUT and OUTPUT at once. Name another file for the output.")
    if output.exists():
        return _recount(source, output)
    audit = ".audit" if config.audit else ""
    partial = output.with_name(f"{output.name}.{task}{audit}.partial")
    with explain_os_errors(output), _open_alone(partial) as file:
        meter = Meter(source)
        result, rows = _take_up(file, read_rows(source, meter.note_position))
        grader = load_task(IRPOConfig(task=TaskConfig(name=task))).grader
        with GradingPool(grader, config) as pool:
            check_grader(pool)
            _grade_rows(pool, PROBLEM_READERS[task], rows, file, result, meter, audit=config.audit)
        file.flush()
        os.fsync(file.fileno())
        _publish(partial, output)
    return result


def _recount(source: Path, output: Path) -> Tally:
    """Count a finished output, row by row beside its input."""
    with open_lines(output) as file:
        result, rows = _take_up(file, read_rows(source), name=output)
    missing = next(rows, None)
    if missing is not None:
        raise ArtifactError(
            f"{output}: ends before {missing.place}, so it was made from another file. "
            "Delete it, or name another output."
        )
    return result


def _take_up(file: BinaryIO, rows: Iterator[InputRow], *, name: Path | None = None) -> tuple[Tally, Iterator[InputRow]]:
    """Count the rows that `file` has already; `rows` goes on behind them."""
    name = name or Path(file.name)
    result = Tally()
    for number, line in enumerate(file, start=1):
        row, wanted = _parse_graded(line), next(rows, None)
        if row is None or wanted is None or _own_fields(row) != _own_fields(wanted.fields):
            place = wanted.place if wanted else "the end of the input"
            raise ArtifactError(
                f"{name}:{number}: is not {place} with its verdict, so it was made from another file. "
                "Delete it, or name another output."
            )
        result.count(row)
    return result, rows


def _parse_graded(line: bytes) -> Fields | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "verdict" in row else None


def _own_fields(row: Fields) -> str:
    """What a row of INPUT and the same row of OUTPUT have in common; as text, because NaN differs from itself."""
    return json.dumps({name: value for name, value in row.items() if name not in _ADDED})


@contextmanager
def _open_alone(partial: Path) -> Iterator[BinaryIO]:
    """Open what an earlier run left, or an empty file, at its start, its last line whole; no one else may hold it."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"{partial}: another `irpo grade` is writing it. Wait for that, or end it.") from None
        file.truncate(_end_of_last_line(file))
        file.seek(0)
        yield file


def _end_of_last_line(file: BinaryIO) -> int:
    """The position behind the last line that is whole."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - _BLOCK, 0)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _grade_rows(
    pool: GradingPool,
    read_problem: ProblemReader,
    rows: Iterator[InputRow],
    file: BinaryIO,
    result: Tally,
    meter: Meter,
    *,
    audit: bool,
) -> None:
    waiting: deque[InputRow] = deque()

    def read_items() -> Iterator[tuple[Problem, str]]:
        for row in rows:
            item = read_item(row, read_problem)
            waiting.append(row)
            yield item

    grades = pool.grade_twice(read_items()) if audit else ((grade, None) for grade in pool.grade(read_items()))
    started = last_flush = time.monotonic()
    for grade, second in grades:
        fields, added = waiting.popleft().fields, _added_fields(grade, second)
        file.write(_write_row(fields | added))
        result.count(fields | added)
        result.num_graded_now += 1
        result.num_replaced += not fields.keys().isdisjoint(added)
        result.seconds = time.monotonic() - started
        meter.show(result)
        if time.monotonic() - last_flush > _FLUSH_SECONDS:
            file.flush()
            last_flush = time.monotonic()
    meter.end()


def _added_fields(grade: Grade, second: Grade | None) -> Fields:
    fields = {"answer": grade.answer, "verdict": grade.verdict, "layer": grade.layer}
    return fields | ({"audit_answer": second.answer, "audit_verdict": second.verdict} if second else {})


def _write_row(row: Fields) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can write
        return json.dumps(row).encode() + b"\n"


def _publish(partial: Path, output: Path) -> None:
    """Give the finished rows their name."""
    if output.suffix != ".gz":
        os.replace(partial, output)
        return

    def compress(temporary: Path) -> None:
        with partial.open("rb") as rows, gzip.open(temporary, "wb", compresslevel=6) as file:
            shutil.copyfileobj(rows, file)

    write_atomically(output, compress)
    partial.unlink()
