"""What the table shows: each claim is shown, or not, with the numbers that decide.

With several seeds the interval is Student's over the seeds' own values: differences of two rows that share problems
and M_0, changes of a curve. With one seed it is that of the problems, or of the steps. A claim is shown when
the whole interval lies on its side of 0.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from irpo_nemo.table.collect import Curve, Measurement
from irpo_nemo.table.estimates import Estimate, estimate_difference, estimate_mean
from irpo_nemo.table.layout import Comparison, CurveClaim, Diminishing

Cells = Mapping[str, Mapping[int, Measurement]]
"""Row -> seed -> measurement."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a claim."""

    says: str
    is_shown: bool | None
    """None when numbers are missing."""
    numbers: str


def check_comparison(claim: Comparison, cells: Cells) -> Finding:
    """Compare two rows seed by seed."""
    better, worse = cells[claim.better], cells[claim.worse]
    seeds = [seed for seed in better if seed in worse]
    if not seeds:
        return _missing(claim.says, [name for name in (claim.better, claim.worse) if not cells[name]])
    each = [
        estimate_difference(better[seed].accuracy, better[seed].interval, worse[seed].accuracy, worse[seed].interval)
        for seed in seeds
    ]
    whole = each[0] if len(each) == 1 else estimate_mean([estimate.mean for estimate in each])
    beyond = sum(estimate.is_positive for estimate in each)
    numbers = [
        f"{100 * whole.mean:+.1f} points ({_points(whole)})",
        f"by seed {', '.join(f'{100 * estimate.mean:+.1f}' for estimate in each)}",
        f"beyond its own interval in {beyond} of {len(each)}",
    ]
    return Finding(says=claim.says, is_shown=whole.is_positive, numbers="; ".join(numbers))


def check_diminishing(claim: Diminishing, cells: Cells) -> Finding:
    """Compare the mean gains from row to row."""
    seeds = [seed for seed in cells[claim.rows[0]] if all(seed in cells[name] for name in claim.rows)]
    if not seeds:
        return _missing(claim.says, [name for name in claim.rows if not cells[name]])
    means = [sum(cells[name][seed].accuracy for seed in seeds) / len(seeds) for name in claim.rows]
    gains = [later - earlier for earlier, later in itertools.pairwise(means)]
    is_shown = all(later < earlier for earlier, later in itertools.pairwise(gains))
    return Finding(
        says=claim.says,
        is_shown=is_shown,
        numbers=f"gains {', '.join(f'{100 * gain:+.1f}' for gain in gains)} points, means of {_seeds(len(seeds))}",
    )


def check_curve(claim: CurveClaim, curves: Sequence[Curve]) -> Finding:
    """Look at where a curve ends."""
    if not curves:
        return _missing(claim.says, [claim.run])
    ends = [sum(curve.last_changes) / len(curve.last_changes) for curve in curves]
    values = ends if len(ends) > 1 else list(curves[0].last_changes)
    if len(values) < 2:
        return Finding(says=claim.says, is_shown=None, numbers="too few steps")
    estimate = estimate_mean(values)
    low, high = estimate.interval
    return Finding(
        says=claim.says,
        is_shown=estimate.is_positive if claim.direction == "rises" else estimate.is_negative,
        numbers=f"{estimate.mean:+.2f} nats a completion (95% interval {low:+.2f} to {high:+.2f}); "
        f"by seed {', '.join(f'{end:+.2f}' for end in ends)}",
    )


def _missing(says: str, names: Sequence[str]) -> Finding:
    what = f"of {', '.join(names)} " if names else "of one seed "
    return Finding(says=says, is_shown=None, numbers=f"numbers {what}are missing")


def _points(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"95% interval {100 * low:+.1f} to {100 * high:+.1f}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
