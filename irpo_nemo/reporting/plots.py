"""The plots of the page, as SVG text. Deterministic: the same numbers give the same bytes."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_INCHES = (6.4, 3.6)


def plot_accuracy(iterations: Sequence[dict[str, Any]]) -> str:
    """Accuracy of each M_t: greedy with its interval, majority vote, pass@k."""
    figure, axes = _new_figure("iteration t of M_t", "accuracy, %")
    steps = [entry["iteration"] for entry in iterations]
    greedy = [100 * entry["accuracy"] for entry in iterations]
    axes.errorbar(steps, greedy, yerr=_error_bars(iterations), marker="o", capsize=4, label="greedy, 95% interval")
    if all(entry["majority_vote"] for entry in iterations):
        votes = [100 * entry["majority_vote"]["accuracy"] for entry in iterations]
        axes.plot(steps, votes, marker="s", label=f"majority of {iterations[0]['majority_vote']['k']}")
    for k in iterations[0]["pass_at_k"]:
        if all(k in entry["pass_at_k"] for entry in iterations):
            rates = [100 * entry["pass_at_k"][k] for entry in iterations]
            axes.plot(steps, rates, linestyle=":", marker=".", label=f"pass@{k}")
    axes.set_xticks(steps)
    axes.set_ylim(0, 100)
    axes.legend(fontsize="small")
    return _as_svg(figure)


def _error_bars(iterations: Sequence[dict[str, Any]]) -> list[list[float]]:
    """What lies below and above each accuracy, in percent; at 0 and 1 rounding may put a bound on the wrong side."""
    below = [max(0.0, 100 * (entry["accuracy"] - entry["accuracy_ci95"][0])) for entry in iterations]
    above = [max(0.0, 100 * (entry["accuracy_ci95"][1] - entry["accuracy"])) for entry in iterations]
    return [below, above]


def plot_curves(metrics: Sequence[dict[str, Any]], names: Sequence[str], *, ylabel: str) -> str:
    """Training curves of one iteration."""
    figure, axes = _new_figure("step", ylabel)
    for name in names:
        points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        axes.plot([step for step, _ in points], [value for _, value in points], label=name, linewidth=1)
    axes.legend(fontsize="small")
    return _as_svg(figure)


def _new_figure(xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _as_svg(figure: "Figure") -> str:
    """The figure as an <svg> element."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "irpo-nemo"}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
