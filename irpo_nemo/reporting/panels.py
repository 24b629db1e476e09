"""Figures of a table as SVG text that stands alone: curves in panels side by side, and accuracies beside the paper's.

Deterministic: the same numbers give the same bytes. Knows no runs and no files.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_INCHES = (3.2, 3.0)
_COLOURS = ("tab:blue", "tab:red", "tab:green", "tab:purple")


def draw_panels(title: str, panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """Lines over steps, with one y axis for all panels.

    Args:
        title: Of the figure.
        panels: Title -> name of a line -> its values by step, once for each seed: thin lines, their mean thick.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL_INCHES[0] * len(panels), _PANEL_INCHES[1]), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (panel, lines) in zip(all_axes, panels.items(), strict=True):
        for (name, seeds), colour in zip(lines.items(), _COLOURS, strict=False):
            for values in seeds:
                axes.plot(values, color=colour, linewidth=0.7, alpha=0.35)
            shortest = min(len(values) for values in seeds)
            mean = [sum(values[step] for values in seeds) / len(seeds) for step in range(shortest)]
            axes.plot(mean, color=colour, linewidth=1.8, label=name)
        axes.set_title(panel, fontsize="small")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if lines:
            axes.legend(fontsize="small")
    all_axes[0].set_ylabel("log-prob of a completion, nats")
    return _as_svg(figure)


def draw_accuracies(title: str, rows: Sequence[tuple[str, float, tuple[float, float], float | None]]) -> str:
    """A dot with its interval for each row, and a cross where the paper stands.

    Args:
        title: Of the figure.
        rows: (name, value, interval, the paper's value if there is one), in percent, from the top.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 0.8 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    values = [value for _, value, _, _ in rows]
    below = [max(0.0, value - low) for _, value, (low, _), _ in rows]
    above = [max(0.0, high - value) for _, value, (_, high), _ in rows]
    axes.errorbar(values, places, xerr=[below, above], fmt="o", capsize=3, label="ours")
    papers = [(paper, place) for place, (_, _, _, paper) in zip(places, rows, strict=True) if paper is not None]
    if papers:
        axes.plot(*zip(*papers, strict=True), "x", color="tab:gray", label="paper")
    axes.set_yticks(list(places), [name for name, *_ in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _as_svg(figure)


def _as_svg(figure: "Figure") -> str:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "irpo-nemo"}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
