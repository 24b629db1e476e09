"""What is graded so far: counted, said while it goes on, and summed up."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from irpo_nemo.grade_file.rows import Fields
from irpo_nemo.metrics import wilson_interval

_LINE_SECONDS = 10.0
"""Between lines of progress where standard error is no terminal."""
_BAR_SECONDS = 0.5


@dataclass(kw_only=True)
class Tally:
    """Counts of the rows of OUTPUT."""

    verdicts: Counter[str] = field(default_factory=Counter)
    num_disputed: int = 0
    """Rows that the grader and the auditor judge differently."""
    num_graded_now: int = 0
    """The others were there from an earlier run."""
    num_replaced: int = 0
    """Of those graded now: rows that had an answer, verdict or layer of their own."""
    seconds: float = 0.0
    """Of grading them."""

    @property
    def num_rows(self) -> int:
        return sum(self.verdicts.values())

    def count(self, row: Fields) -> None:
        """Count a row of OUTPUT."""
        self.verdicts[row["verdict"]] += 1
        self.num_disputed += {row["verdict"], row.get("audit_verdict")} == {"correct", "wrong"}


def describe(result: Tally) -> list[str]:
    """What a person wants to know of a graded file, in lines."""
    if not result.num_rows:
        return ["0 rows"]
    verdicts = ", ".join(f"{result.verdicts[name]} {name}" for name in ("correct", "wrong", "unparsable", "error"))
    low, high = wilson_interval(result.verdicts["correct"], result.num_rows)
    accuracy = result.verdicts["correct"] / result.num_rows
    lines = [
        f"{result.num_rows} rows: {verdicts}",
        f"accuracy {accuracy:.2%} (95% interval {low:.2%} to {high:.2%}), "
        f"unparsable {result.verdicts['unparsable'] / result.num_rows:.2%}",
    ]
    if result.num_disputed:
        lines.append(f"{result.num_disputed} rows that the second grader judges differently")
    if result.num_replaced:
        lines.append(
            f"{result.num_replaced} rows had an answer, verdict or layer of their own; OUTPUT has the new ones"
        )
    if result.num_graded_now:
        speed = result.num_graded_now / result.seconds
        lines.append(f"{result.num_graded_now} rows graded in {result.seconds:.1f} s, {speed:.0f} rows/s")
    return lines


class Meter:
    """Says on standard error how far the work is: one line that changes on a terminal, else a line now and then."""

    def __init__(self, source: Path) -> None:
        self._size = source.stat().st_size if source.is_file() else 0
        self._position = 0
        self._is_terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (_BAR_SECONDS if self._is_terminal else _LINE_SECONDS)

    def note_position(self, position: int) -> None:
        """Bytes of the source that are read."""
        self._position = position

    def show(self, result: Tally) -> None:
        """Say it, when it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (_BAR_SECONDS if self._is_terminal else _LINE_SECONDS)
        share = self._position / self._size if self._size else 1.0
        text = f"{result.num_rows} rows, {share:.0%}, {result.num_graded_now / result.seconds:.0f} rows/s"
        print(
            f"\r\033[2K{text}" if self._is_terminal else text,
            end="" if self._is_terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        """Leave an empty line to write on."""
        if self._is_terminal:
            print("\r\033[2K", end="", file=sys.stderr, flush=True)
