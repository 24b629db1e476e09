"""The table of a run's results on the terminal."""

from typing import Any

_COLUMNS = ("model", "greedy", "95% interval", "majority", "samples", "pairs", "train loss")
_FILE_WIDTH = 100
"""Columns where the output is no terminal."""


def print_results(results: dict[str, Any]) -> None:
    """Print one row for each M_t."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{results['run']}: accuracy on {results['task']}", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in make_rows(results):
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(table)


def make_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
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
