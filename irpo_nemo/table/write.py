"""The table on the terminal and as files: `table.md`, `table.json`, and each figure as SVG."""

import importlib.util
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from irpo_nemo.artifacts import write_json, write_text
from irpo_nemo.launch.display import print_table
from irpo_nemo.launch.progress import describe_duration
from irpo_nemo.table.collect import Curve
from irpo_nemo.table.layout import SIDES
from irpo_nemo.table.result import RowResult, TableResult

logger = logging.getLogger(__name__)

_COLUMNS = ("row", "ours, %", "95% interval", "by seed", "paper, %")


def print_result(result: TableResult) -> None:
    """Rows, claims, shared work and what is missing, on the terminal."""
    print_table(_COLUMNS, [_cells_of(row) for row in result.rows], title=_title(result))
    print()
    findings = [(finding.verdict, finding.says, finding.numbers) for finding in result.findings]
    if findings:
        print_table(("", "claim", "numbers"), findings, title="What it shows")
        print()
    for line in [*_describe_sharing(result), *_describe_gaps(result)]:
        print(line)


def write_result(result: TableResult) -> None:
    """Write table.json, table.md and the figures that have curves, into the table's folder."""
    folder = result.plan.folder
    write_json(folder / "table.json", _as_json(result))
    write_text(folder / "table.md", _as_markdown(result))
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("figures need matplotlib: pip install 'irpo-nemo[report]'")
        return
    from irpo_nemo.reporting.panels import draw_accuracies, draw_panels

    for figure in result.plan.layout.figures:
        panels = {title: _lines_of(result, run) for title, run in figure.panels.items()}
        if any(panels.values()):
            write_text(folder / f"{figure.file}.svg", draw_panels(figure.title, panels))
    bars = [
        (row.title, 100 * row.mean, (100 * row.interval[0], 100 * row.interval[1]), row.row.paper)
        for row in result.rows
        if row.mean is not None and row.interval is not None
    ]
    if bars:
        write_text(folder / "accuracy.svg", draw_accuracies("Accuracy, % (mean and 95% interval; x: paper)", bars))


def _lines_of(result: TableResult, run: str) -> dict[str, list[list[float]]]:
    """Side -> the log-probs of each seed, smoothed; empty when no seed is done."""
    sides = {side: [_smooth(curve) for curve in result.curves[run][side]] for side in SIDES}
    return {side: lines for side, lines in sides.items() if lines}


def _smooth(curve: Curve) -> list[float]:
    """The curve's log-probs, each averaged with those of the last twentieth of the run before it."""
    window = max(1, len(curve.changes) // 20)
    recent = (curve.changes[max(0, end - window) : end] for end in range(1, len(curve.changes) + 1))
    return [curve.level + sum(values) / len(values) for values in recent]


def _title(result: TableResult) -> str:
    seeds = ", ".join(map(str, result.plan.seeds))
    source = result.plan.layout.source
    paper = f"; last column: {source}" if source else ""
    return f"{result.plan.folder}: accuracy in %, 95% interval, and by seed ({seeds}){paper}"


def _cells_of(row: RowResult) -> tuple[str, str, str, str, str]:
    interval = row.interval
    return (
        row.title,
        "missing" if row.mean is None else f"{100 * row.mean:.1f}",
        f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else "-",
        " ".join(f"{100 * made.accuracy:.1f}" for made in row.measurements.values()) or "-",
        "-" if row.row.paper is None else f"{row.row.paper:.1f}",
    )


def _describe_sharing(result: TableResult) -> Iterator[str]:
    """What was taken over, a line for each run and origin; then the time it spared."""
    by_run: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for step in result.steps:
        if step.origin is not None:
            by_run[step.run, step.origin][step.step].append(step.seconds)
    for (run, origin), steps in by_run.items():
        time = describe_duration(sum(map(sum, steps.values())))
        yield f"{run} took over from {origin}: {', '.join(steps)} ({time} spared)"
    own = sum(step.seconds for step in result.steps if step.origin is None)
    spared = sum(step.seconds for step in result.steps if step.origin is not None)
    if result.steps:
        times = describe_duration(own), describe_duration(own + spared)
        yield f"all steps took {times[0]}; without sharing they would have taken {times[1]}"


def _describe_gaps(result: TableResult) -> Iterator[str]:
    for title, seeds in result.missing.items():
        yield f"missing: {title}, seed {', '.join(map(str, seeds))}"
    for (run, seed), reason in result.failures.items():
        yield f"failed: {run}, seed {seed}: {reason}"


def _as_markdown(result: TableResult) -> str:
    lines = [f"Seeds {', '.join(map(str, result.plan.seeds))}. Paper: {result.plan.layout.source or 'none'}.", ""]
    lines += _markdown_table(_COLUMNS, [_cells_of(row) for row in result.rows])
    if result.findings:
        lines += ["", "What it shows:", ""]
        lines += [f"- **{f.verdict}**: {f.says} ({f.numbers})" for f in result.findings]
    lines += ["", *(f"- {line}" for line in [*_describe_sharing(result), *_describe_gaps(result)])]
    return "\n".join(lines) + "\n"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(columns), f"|{'---|' * len(columns)}", *map(line, rows)]


def _as_json(result: TableResult) -> dict[str, Any]:
    return {
        "source": result.plan.layout.source,
        "seeds": list(result.plan.seeds),
        "options": result.plan.options,
        "rows": [
            {
                "id": row.row.id,
                "title": row.title,
                "run": row.row.run,
                "iteration": row.row.iteration,
                "decoding": row.row.decoding,
                "mean": row.mean,
                "ci95": list(row.interval) if row.interval else None,
                "by_seed": {str(seed): made.accuracy for seed, made in row.measurements.items()},
                "missing_seeds": [seed for seed in result.plan.seeds if seed not in row.measurements],
                "paper_percent": row.row.paper,
            }
            for row in result.rows
        ],
        "claims": [{"says": f.says, "verdict": f.verdict, "numbers": f.numbers} for f in result.findings],
        "curves": {
            run: {side: [list(_smooth(curve)) for curve in curves] for side, curves in sides.items()}
            for run, sides in result.curves.items()
        },
        "steps": [
            {"run": s.run, "seed": s.seed, "step": s.step, "taken_from": s.origin, "seconds": s.seconds}
            for s in result.steps
        ],
        "failures": [{"run": run, "seed": seed, "reason": reason} for (run, seed), reason in result.failures.items()],
    }
