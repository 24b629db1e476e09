"""What the table shows: each claim is shown, or not, with the numbers that decide.

With several seeds the interval is Student's over the seeds' own values: differences of two rows that share problems
and M_0, changes of a curve. With one seed it is that of the problems, or of the steps. A claim is *shown* when
the whole interval lies on its side of 0. Seeds can agree in the direction and differ in how far: where each seed's own
interval lies on that side, and Student's does not, the claim is *shown in every seed*.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from irpo_nemo.table.collect import Curve, Measurement
from irpo_nemo.table.estimates import Estimate, estimate_gain, estimate_mean
from irpo_nemo.table.layout import Comparison, CurveClaim, Diminishing

Cells = Mapping[str, Mapping[int, Measurement]]
"""Row -> seed -> measurement."""

Verdict = Literal["shown", "shown in every seed", "not shown", "missing"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a claim."""

    says: str
    verdict: Verdict
    numbers: str


def check_comparison(claim: Comparison, cells: Cells) -> Finding:
    """Compare two rows seed by seed."""
    better, worse = cells[claim.better], cells[claim.worse]
    seeds = [seed for seed in better if seed in worse]
    if not seeds:
        return _missing(claim.says, [name for name in (claim.better, claim.worse) if not cells[name]])
    each = [_compare(better[seed], worse[seed]) for seed in seeds]
    whole = each[0] if len(each) == 1 else estimate_mean([estimate.mean for estimate in each])
    beyond = [estimate.is_positive for estimate in each]
    numbers = [
        f"{100 * whole.mean:+.1f} points ({_points(whole)})",
        f"by seed {', '.join(f'{100 * estimate.mean:+.1f}' for estimate in each)}",
        _count_beyond(beyond),
    ]
    return Finding(says=claim.says, verdict=_judge(whole.is_positive, beyond), numbers="; ".join(numbers))


def _compare(better: Measurement, worse: Measurement) -> Estimate:
    """On the same problems."""
    problems = sorted(better.scores.keys() & worse.scores.keys())
    return estimate_gain([better.scores[name] for name in problems], [worse.scores[name] for name in problems])


def check_diminishing(claim: Diminishing, cells: Cells) -> Finding:
    """Compare the mean gains from row to row."""
    seeds = [seed for seed in cells[claim.rows[0]] if all(seed in cells[name] for name in claim.rows)]
    if not seeds:
        return _missing(claim.says, [name for name in claim.rows if not cells[name]])
    means = [sum(cells[name][seed].accuracy for seed in seeds) / len(seeds) for name in claim.rows]
    gains = [later - earlier for earlier, later in itertools.pairwise(means)]
    return Finding(
        says=claim.says,
        verdict="shown" if all(later < earlier for earlier, later in itertools.pairwise(gains)) else "not shown",
        numbers=f"gains {', '.join(f'{100 * gain:+.1f}' for gain in gains)} points, means of {_seeds(len(seeds))}",
    )


def check_curve(claim: CurveClaim, curves: Sequence[Curve]) -> Finding:
    """Look at where a curve ends."""
    if not curves:
        return _missing(claim.says, [claim.run])
    if any(len(curve.last_changes) < 2 for curve in curves):
        return Finding(says=claim.says, verdict="missing", numbers="too few steps")
    each = [estimate_mean(curve.last_changes) for curve in curves]
    whole = each[0] if len(each) == 1 else estimate_mean([estimate.mean for estimate in each])
    beyond = [_is_beyond(claim, estimate) for estimate in each]
    low, high = whole.interval
    numbers = [
        f"{whole.mean:+.2f} nats a completion (95% interval {low:+.2f} to {high:+.2f})",
        f"by seed {', '.join(f'{estimate.mean:+.2f}' for estimate in each)}",
        _count_beyond(beyond),
    ]
    return Finding(says=claim.says, verdict=_judge(_is_beyond(claim, whole), beyond), numbers="; ".join(numbers))


def _is_beyond(claim: CurveClaim, estimate: Estimate) -> bool:
    return estimate.is_positive if claim.direction == "rises" else estimate.is_negative


def _judge(is_shown: bool, by_seed: Sequence[bool]) -> Verdict:
    if is_shown:
        return "shown"
    return "shown in every seed" if all(by_seed) else "not shown"


def _count_beyond(by_seed: Sequence[bool]) -> str:
    return f"beyond its own interval in {sum(by_seed)} of {len(by_seed)}"


def _missing(says: str, names: Sequence[str]) -> Finding:
    what = f"of {', '.join(names)} " if names else "of one seed "
    return Finding(says=says, verdict="missing", numbers=f"numbers {what}are missing")


def _points(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"95% interval {100 * low:+.1f} to {100 * high:+.1f}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
