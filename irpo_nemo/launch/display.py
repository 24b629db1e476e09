"""What a person sees while stages run: lines that stay, and below them, in a terminal, a bar for the step at work."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from irpo_nemo.artifacts import Manifest
from irpo_nemo.launch.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

_REFRESH_SECONDS = 1.0
_STYLES = {
    "done": "green",
    "running": "bold cyan",
    "failed": "bold red",
    "stale": "yellow",
    "interrupted": "yellow",
    "queued": "cyan",
}


class Display:
    """Lines with the time of day on standard output; bars only where it is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)

    def show(self, text: str) -> None:
        """Print a line that stays. The text may come from a model or a data file, so it is never read as markup."""
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", markup=False, soft_wrap=True)

    @contextmanager
    def watch(self, title: str, read: Callable[[], Progress | None]) -> Iterator[Callable[[], None]]:
        """Show a bar during the block, which calls what it is given, often; `read` is called once a second."""
        if not self._console.is_terminal:
            yield lambda: None
            return
        with _make_bars(self._console) as bars:
            yield _Refresher(bars, title, read)


class _Refresher:
    """Reads the progress again once a second."""

    def __init__(self, bars: "Bars", title: str, read: Callable[[], Progress | None]) -> None:
        self._bars = bars
        self._read = read
        self._bar = bars.add_task(title, total=None, detail="")
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _REFRESH_SECONDS
        progress = self._read()
        if progress is not None and progress.total:
            self._bars.update(self._bar, completed=progress.done, total=progress.total, detail=str(progress))


def _make_bars(console: "object") -> "Bars":
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,  # type: ignore[arg-type]
        transient=True,
    )


def summarize(manifest: Manifest) -> str:
    """One line of numbers about a finished stage, from what it counted."""
    seconds = manifest.seconds["total"]
    facts = [str(fact) for fact in manifest.counts.get("summary", [])]
    if manifest.taken_from is not None:
        return ", ".join([*facts, f"taken over from {manifest.taken_from}"])
    return ", ".join([*facts, f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"])


def clear_screen() -> None:
    """Begin a terminal's page anew; a file just goes on."""
    from rich.console import Console

    Console().clear()


def print_table(columns: Iterable[str], rows: Iterable[tuple[str, ...]], *, title: str) -> None:
    """A rich table in a terminal; aligned plain lines where the output is a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if console.is_terminal:
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        console.print(table)
        return
    rows = list(rows)
    print(title)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
