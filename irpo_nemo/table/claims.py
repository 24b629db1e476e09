"""What the table shows: each claim is shown, or not, with the numbers that decide.

With several seeds the interval is Student's over the seeds' own values: differences of two rows that share problems
and M_0, changes of a curve. With one seed it is that of the problems, or of the steps. A claim is *shown* when
the whole interval lies on its side of 0. Seeds can agree in the direction and differ in how far: where each seed's own
interval lies on that side, and Student's does not, the claim is *shown in every seed*.
"""

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from irpo_nemo.table.collect import Curve, Measurement
from irpo_nemo.table.estimates import Estimate, estimate_gain, estimate_mean
from irpo_nemo.table.layout import Comparison, CurveClaim, Diminishing

Cells = Mapping[str, Mapping[int, Measurement]]
"""Row -> seed -> measurement."""

_is_above = operator.attrgetter("is_positive")
_is_below = operator.attrgetter("is_negative")

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
    seeds = [seed for seed in better if seed in worse and better[seed].scores.keys() & worse[seed].scores.keys()]
    if not seeds:
        return _missing(claim.says, [name for name in (claim.better, claim.worse) if not cells[name]])
    each = [_compare(better[seed], worse[seed]) for seed in seeds]
    return _judge(claim.says, each, _is_above, unit="points", write=lambda share: f"{100 * share:+.1f}")


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
    is_beyond = _is_above if claim.direction == "rises" else _is_below
    return _judge(claim.says, each, is_beyond, unit="nats a completion", write=lambda nats: f"{nats:+.2f}")


def _judge(
    says: str,
    each: Sequence[Estimate],
    is_beyond: Callable[[Estimate], bool],
    *,
    unit: str,
    write: Callable[[float], str],
) -> Finding:
    """Decide by the estimates of `each` seed, and by their mean."""
    whole = each[0] if len(each) == 1 else estimate_mean([estimate.mean for estimate in each])
    beyond = sum(map(is_beyond, each))
    verdict: Verdict = "shown" if is_beyond(whole) else "shown in every seed" if beyond == len(each) else "not shown"
    low, high = whole.interval
    numbers = (
        f"{write(whole.mean)} {unit} (95% interval {write(low)} to {write(high)}); "
        f"by seed {', '.join(write(estimate.mean) for estimate in each)}; "
        f"beyond its own interval in {beyond} of {len(each)}"
    )
    return Finding(says=says, verdict=verdict, numbers=numbers)


def _missing(says: str, names: Sequence[str]) -> Finding:
    what = f"of {', '.join(names)} " if names else "of one seed and the same problems "
    return Finding(says=says, verdict="missing", numbers=f"numbers {what}are missing")


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
