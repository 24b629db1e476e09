"""The table of a run's results on the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("model", "greedy", "95% interval", "majority", "samples", "pairs", "train loss")
_FILE_WIDTH = 100
"""Columns where the output is no terminal."""


def print_results(results: dict[str, Any]) -> None:
    """Print one row for each M_t."""
    _print_table(f"{results['run']}: accuracy on {results['task']}", COLUMNS, [make_rows(results)])


def print_comparison(runs: dict[str, dict[str, Any]]) -> None:
    """Print one row for each M_t of each run."""
    groups = [[(name, *row) for row in make_rows(results)] for name, results in runs.items()]
    _print_table("accuracy", ("run", *COLUMNS), groups)


def _print_table(title: str, columns: Sequence[str], groups: Sequence[Sequence[Sequence[str]]]) -> None:
    """Print rows in groups, with a line between two groups."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "run") else "right")
    for rows in groups:
        for row in rows:
            table.add_row(*map(Text, row))
        table.add_section()
    open_console().print(table)


def open_console() -> "Console":
    """Standard output: as wide as the terminal, or `_FILE_WIDTH` where it is none."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def make_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells as text."""
    rows: list[tuple[str, ...]] = []
    for entry in results["iterations"]:
        low, high = entry["accuracy_ci95"]
        majority = entry["majority_vote"]
        loss = (entry["loss"] or {}).get("loss/total")
        rows.append(
            (
                f"M_{entry['iteration']}",
                percent(entry["accuracy"]),
                f"{percent(low)} to {percent(high)}",
                f"{percent(majority['accuracy'])} of {majority['k']}" if majority else "-",
                percent(entry["sample_accuracy"]),
                "-" if entry["num_pairs"] is None else str(entry["num_pairs"]),
                f"{loss['first']:.3f} to {loss['last']:.3f}" if loss else "-",
            )
        )
    return rows


def percent(share: float | None) -> str:
    """A share as a percentage; "-" for none."""
    return "-" if share is None else f"{share:.1%}"
