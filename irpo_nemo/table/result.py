"""All that a table says, put together from the folders of its runs, of what is done so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from irpo_nemo.metrics import Interval
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.table.claims import Finding, check_comparison, check_curve, check_diminishing
from irpo_nemo.table.collect import Curve, DoneStep, Measurement, list_done_steps, measure, read_curve
from irpo_nemo.table.estimates import estimate_mean
from irpo_nemo.table.layout import SIDES, Row
from irpo_nemo.table.runs import TablePlan


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row over the seeds."""

    row: Row
    measurements: Mapping[int, Measurement]
    """By seed; those that are done."""

    @property
    def title(self) -> str:
        """The row's name, with the decoding, and the votes that were taken."""
        votes = next((made.num_votes for made in self.measurements.values()), None)
        decodings = {"greedy": "", "majority": f", maj@{votes or 'k'}", "pass@1": ", pass@1"}
        return f"{self.row.title}{decodings[self.row.decoding]}"

    @property
    def mean(self) -> float | None:
        """Over the seeds that are done."""
        values = [made.accuracy for made in self.measurements.values()]
        return sum(values) / len(values) if values else None

    @property
    def interval(self) -> Interval | None:
        """95 %: over seeds, or, of one seed, over its problems."""
        made = list(self.measurements.values())
        if len(made) < 2:
            return made[0].interval if made else None
        low, high = estimate_mean([measurement.accuracy for measurement in made]).interval
        return max(0.0, low), min(1.0, high)


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """The table."""

    plan: TablePlan
    rows: Sequence[RowResult]
    findings: Sequence[Finding]
    curves: Mapping[str, Mapping[str, Sequence[Curve]]]
    """Run -> side -> a curve for each seed that is done."""
    steps: Sequence[DoneStep]
    failures: Mapping[tuple[str, int], str]
    """Why runs failed just now, by run and seed."""

    @property
    def missing(self) -> dict[str, list[int]]:
        """Title of a row -> the seeds that are not done."""
        gaps = {row.title: [seed for seed in self.plan.seeds if seed not in row.measurements] for row in self.rows}
        return {title: seeds for title, seeds in gaps.items() if seeds}


def collect_table(plan: TablePlan, failures: Mapping[tuple[str, int], str]) -> TableResult:
    """Read what the runs have left so far."""
    layout = plan.layout
    folders = {(run, seed): RunFolder(plan.folder_of(seed) / run) for run in layout.runs for seed in plan.seeds}
    rows = []
    for row in layout.rows:
        made = {seed: measure(folders[row.run, seed], row) for seed in plan.seeds}
        rows.append(RowResult(row=row, measurements={seed: m for seed, m in made.items() if m is not None}))
    wanted = {run for figure in layout.figures for run in figure.panels.values()} | {c.run for c in layout.curves}
    curves = {run: {side: _read_curves(plan, run, side) for side in SIDES} for run in layout.runs if run in wanted}
    cells = {result.row.id: result.measurements for result in rows}
    findings = [
        *(check_comparison(claim, cells) for claim in layout.comparisons),
        *(check_diminishing(claim, cells) for claim in layout.diminishing),
        *(check_curve(claim, curves[claim.run][claim.side]) for claim in layout.curves),
    ]
    steps = [step for (run, seed), folder in folders.items() for step in list_done_steps(folder, name=run, seed=seed)]
    return TableResult(plan=plan, rows=rows, findings=findings, curves=curves, steps=steps, failures=failures)


def _read_curves(plan: TablePlan, run: str, side: str) -> list[Curve]:
    curves = (read_curve(RunFolder(plan.folder_of(seed) / run), side) for seed in plan.seeds)
    return [curve for curve in curves if curve is not None]
