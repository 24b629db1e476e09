"""Charts as SVG text, small enough that several stand side by side and one fills a phone.

Colours come from the page's style sheet, by class (`s1` .. `s6` for series, `v-correct` and so on for verdicts), so
that one chart serves a light and a dark page. Each carries its legend as HTML and its values as text for those who do
not see it. Deterministic: the same numbers give the same bytes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 30
_MAX_POINTS = 160
"""Of one line within one segment; more are averaged in buckets, and a band shows the buckets' extremes."""

Point = tuple[float, float]
Format = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    style: str
    """Class of the style sheet: its colour."""
    points: Sequence[Point]
    intervals: Sequence[tuple[float, float]] = ()
    """Low and high of each point; empty for none."""
    dashed: bool = False
    marked: bool = False
    """Whether points have a dot."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of the x axis with a name of its own, such as the steps of one iteration."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One horizontal bar, made of parts side by side."""

    name: str
    parts: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class PartStyle:
    """What the parts at one place of all bars stand for."""

    name: str
    style: str


def number(value: float) -> str:
    """A number in few characters: 12.3k, 1,600, 0.69, -45.2."""
    size = abs(value)
    for limit, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / unit:.3g}{name}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-3 or value == 0 else f"{value:.1e}"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.3g}%"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for limit, size, unit in ((172800, 86400, "d"), (7200, 3600, "h"), (120, 60, "min")):
        if seconds >= limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def draw_lines(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    segments: Sequence[Segment] = (),
    x_ticks: Sequence[tuple[float, str]] = (),
    y_range: tuple[float, float] | None = None,
    y_format: Format = number,
) -> str:
    """A figure with lines over a common x axis; "" when no series has a point.

    Args:
        title: Above the figure.
        series: Drawn in this order.
        note: A sentence under the title.
        segments: Named stretches of the x axis, separated by thin lines; lines break between them.
        x_ticks: Place and text of the marks on the x axis.
        y_range: Of the y axis; from the values when not given.
        y_format: Of values.
    """
    series = [line for line in series if line.points]
    if not series:
        return ""
    frame = _Frame.around(series, segments, y_range)
    body = [*_draw_grid(frame, y_format), *_draw_segments(frame, segments), *_draw_x_ticks(frame, x_ticks)]
    for line in series:
        body += _draw_series(frame, line, segments, y_format)
    legend = [(line.style, line.name, _describe(line, y_format), line.dashed) for line in series]
    return _figure(title, note, legend, body, HEIGHT)


def draw_bars(
    title: str, parts: Sequence[PartStyle], bars: Sequence[Bar], *, note: str = "", value_format: Format = number
) -> str:
    """A figure with one horizontal bar above the other; "" when all are empty."""
    most = max((sum(bar.parts) for bar in bars), default=0)
    if most <= 0:
        return ""
    row, top = 26, 4
    width = WIDTH - _LEFT - 64
    body = []
    for place, bar in enumerate(bars):
        y, x = top + place * row, float(_LEFT)
        body.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 14}" text-anchor="end">{escape(bar.name)}</text>')
        for part, value in zip(parts, bar.parts, strict=True):
            size = width * value / most
            tip = f"{bar.name}, {part.name}: {value_format(value)} ({percent(value / (sum(bar.parts) or 1))})"
            if value > 0:
                body.append(
                    f'<rect class="{part.style}" x="{x:.1f}" y="{y}" width="{size:.1f}" height="18">'
                    f"<title>{escape(tip)}</title></rect>"
                )
            x += size
        body.append(f'<text class="tick" x="{x + 5:.1f}" y="{y + 14}">{value_format(sum(bar.parts))}</text>')
    totals = [sum(bar.parts[place] for bar in bars) for place in range(len(parts))]
    legend = [
        (part.style, part.name, value_format(total), False) for part, total in zip(parts, totals, strict=True) if total
    ]
    return _figure(title, note, legend, body, top + row * len(bars) + 2)


def _describe(line: Series, y_format: Format) -> str:
    """First and last value."""
    first, last = y_format(line.points[0][1]), y_format(line.points[-1][1])
    return first if len(line.points) == 1 else f"{first} to {last}"


def _figure(
    title: str, note: str, legend: Sequence[tuple[str, str, str, bool]], body: Sequence[str], height: int
) -> str:
    """The card: title, note, legend, and the drawing, which is one image with a name for a screen reader."""
    entries = "".join(
        f'<li><span class="key {style}{" dashed" if dashed else ""}"></span>{escape(name)} '
        f"<small>{escape(about)}</small></li>"
        for style, name, about, dashed in legend
    )
    spoken = escape(f"{title}: " + "; ".join(f"{name} {about}" for _, name, about, _ in legend), quote=True)
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{note}<ul class="legend">{entries}</ul>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{spoken}">{"".join(body)}</svg></figure>'
    )


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What the drawing shows of both axes."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    y_ticks: Sequence[float]

    @classmethod
    def around(
        cls, series: Sequence[Series], segments: Sequence[Segment], y_range: tuple[float, float] | None
    ) -> "_Frame":
        xs = [x for line in series for x, _ in line.points] + [edge for s in segments for edge in (s.start, s.end)]
        ys = [y for line in series for _, y in line.points] + [
            y for line in series for pair in line.intervals for y in pair
        ]
        low, high = y_range or (min(ys), max(ys))
        ticks = _nice_ticks(low, high)
        x_low, x_high = min(xs), max(xs)
        margin = (x_high - x_low) * (0 if segments else 0.04) or (0.0 if segments else 0.5)
        return cls(
            x_low=x_low - margin,
            x_high=max(x_high + margin, x_low + 1e-9),
            y_low=min(low, ticks[0]),
            y_high=max(high, ticks[-1]),
            y_ticks=ticks,
        )

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - self.y_low) / (self.y_high - self.y_low)


def _nice_ticks(low: float, high: float) -> list[float]:
    """Four to seven round values that span the range."""
    if high - low < 1e-12 * max(1.0, abs(low)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def _draw_grid(frame: _Frame, y_format: Format) -> list[str]:
    lines = []
    for tick in frame.y_ticks:
        y = f"{frame.y(tick):.1f}"
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text class="tick" x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{y_format(tick)}</text>')
    return lines


def _draw_segments(frame: _Frame, segments: Sequence[Segment]) -> list[str]:
    body = []
    for place, segment in enumerate(segments):
        if place:
            x = f"{frame.x(segment.start):.1f}"
            body.append(f'<line class="edge" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        middle = frame.x((segment.start + segment.end) / 2)
        body.append(
            f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(segment.name)}</text>'
        )
    return body


def _draw_x_ticks(frame: _Frame, ticks: Sequence[tuple[float, str]]) -> list[str]:
    y = HEIGHT - 12
    return [
        f'<text class="tick" x="{frame.x(x):.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>'
        for x, text in ticks
    ]


def _draw_series(frame: _Frame, line: Series, segments: Sequence[Segment], y_format: Format) -> list[str]:
    body = []
    dashed = " dashed" if line.dashed else ""
    for points in _split(line.points, segments):
        means, lows, highs = _thin_out(points)
        if lows:
            outline = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in (*highs, *reversed(lows)))
            body.append(f'<polygon class="band {line.style}" points="{outline}"/>')
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in means)
        body.append(f'<polyline class="line {line.style}{dashed}" points="{path}"/>')
    for (x, _), (low, high) in zip(line.points, line.intervals, strict=False):
        at, below, above = frame.x(x), frame.y(low), frame.y(high)
        body.append(
            f'<path class="whisker {line.style}" d="M{at:.1f} {below:.1f}V{above:.1f}'
            f'M{at - 4:.1f} {below:.1f}h8M{at - 4:.1f} {above:.1f}h8"/>'
        )
    if line.marked:
        body += [
            f'<circle class="dot {line.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5">'
            f"<title>{escape(f'{line.name}: {y_format(y)}')}</title></circle>"
            for x, y in line.points
        ]
    return body


def _split(points: Sequence[Point], segments: Sequence[Segment]) -> list[list[Point]]:
    """The points of each segment; all of them when there are none."""
    if not segments:
        return [list(points)]
    split = [[point for point in points if segment.start <= point[0] < segment.end] for segment in segments]
    return [inside for inside in split if inside]


def _thin_out(points: Sequence[Point]) -> tuple[list[Point], list[Point], list[Point]]:
    """At most `_MAX_POINTS` mean values, with the lowest and the highest of each bucket when there were more."""
    if len(points) <= _MAX_POINTS:
        return list(points), [], []
    edges = [len(points) * place // _MAX_POINTS for place in range(_MAX_POINTS + 1)]
    buckets = [points[start:end] for start, end in itertools.pairwise(edges)]
    middles = [sum(x for x, _ in bucket) / len(bucket) for bucket in buckets]
    values = [[y for _, y in bucket] for bucket in buckets]
    return (
        [(x, sum(ys) / len(ys)) for x, ys in zip(middles, values, strict=True)],
        [(x, min(ys)) for x, ys in zip(middles, values, strict=True)],
        [(x, max(ys)) for x, ys in zip(middles, values, strict=True)],
    )
