"""The figures of a report: which numbers of results.json and metrics.jsonl stand in which chart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from irpo_nemo.reporting.charts import (
    Bar,
    Format,
    PartStyle,
    Point,
    Segment,
    Series,
    draw_bars,
    draw_lines,
    duration,
    number,
    percent,
)

Entries = Sequence[Mapping[str, Any]]
"""The iterations of results.json."""
Metrics = Sequence[Mapping[str, Any]]
"""The lines of a metrics.jsonl."""

_WHERE_PROBLEMS_WENT = (
    ("with_pairs", "gave pairs", "s3"),
    ("no_winner", "none correct", "s2"),
    ("no_loser", "none wrong", "s1"),
    ("all_too_long", "all too long", "s5"),
    ("no_candidates", "nothing to pair", "s4"),
)
_STAGES = (
    ("sample", "sample", "s1"),
    ("grade", "grade", "s2"),
    ("pair", "pair", "s5"),
    ("trial", "trial", "s7"),
    ("select", "select", "s8"),
    ("reference", "reference", "s4"),
    ("train", "train", "s3"),
    ("export", "export", "s6"),
)
_VERDICTS = ("correct", "wrong", "unparsable", "error")

TRAINING = (
    ("Log-probability of a sequence", {"chosen": "logprob/chosen", "rejected": "logprob/rejected"}),
    ("Log-probability of a token", {"chosen": "logprob_per_token/chosen", "rejected": "logprob_per_token/rejected"}),
    ("Margin", {"reward of chosen less rejected": "reward/margin"}),
    ("Share of pairs with chosen ahead", {"accuracy": "reward/accuracy"}),
    ("Loss", {"total": "loss/total", "DPO": "loss/dpo", "NLL": "loss/nll"}),
    ("Gradient norm", {"before clipping": "grad_norm"}),
    ("Learning rate", {"learning rate": "learning_rate"}),
    ("Tokens per second", {"tokens per second": "tokens_per_second"}),
)
"""Charts by step: title, and which curve has which name in metrics.jsonl."""


def draw_accuracy(entries: Entries) -> list[str]:
    """Accuracy of each M_t: greedy and majority vote with their intervals, pass@k, and samples."""
    greedy = Series(
        name="greedy, 95% interval",
        style="s1",
        marked=True,
        points=[(entry["iteration"], entry["accuracy"]) for entry in entries],
        intervals=[tuple(entry["accuracy_ci95"]) for entry in entries],
    )
    votes = [(entry["iteration"], entry["majority_vote"]) for entry in entries if entry["majority_vote"]]
    majority = Series(
        name=f"majority of {votes[0][1]['k']}" if votes else "majority",
        style="s2",
        marked=True,
        points=[(t, vote["accuracy"]) for t, vote in votes],
        intervals=[tuple(vote["accuracy_ci95"]) for _, vote in votes],
    )
    ticks = model_ticks(entries)
    passes = [
        Series(name=f"pass@{k}", style=f"s{1 + place % 6}", points=_pick_pass(entries, k), dashed=True, marked=True)
        for place, k in enumerate(entries[0]["pass_at_k"])
    ]
    samples = [
        Series(name=name, style=style, points=_pick(entries, key), marked=True)
        for name, key, style in (
            ("test problems", "sample_accuracy", "s1"),
            ("training problems", "train_sample_accuracy", "s3"),
        )
    ]

    def draw(title: str, series: Sequence[Series], note: str = "") -> str:
        return draw_lines(title, series, note=note, x_ticks=ticks, y_range=(0.0, 1.0), y_format=percent)

    return [
        draw("Accuracy", [greedy, majority]),
        draw("pass@k", passes, "The chance that one of k samples is correct."),
        draw("Correct samples", samples),
    ]


def model_ticks(entries: Entries) -> list[tuple[float, str]]:
    """A mark for each model on the x axis."""
    return [(entry["iteration"], f"M_{entry['iteration']}") for entry in entries]


def _pick(entries: Entries, key: str) -> list[Point]:
    return [(entry["iteration"], entry[key]) for entry in entries if entry[key] is not None]


def _pick_pass(entries: Entries, k: str) -> list[Point]:
    return [(entry["iteration"], entry["pass_at_k"][k]) for entry in entries if k in entry["pass_at_k"]]


def draw_training(metrics: Mapping[int, Metrics]) -> list[str]:
    """The curves of every iteration's training, one behind the other."""
    segments, offsets = _lay_out(metrics)
    charts = []
    for title, curves in TRAINING:
        series = [
            Series(
                name=name,
                style=f"s{place + 1}",
                points=[
                    (offsets[t] + line["step"], line[key])
                    for t, lines in metrics.items()
                    for line in lines
                    if line.get(key) is not None
                ],
            )
            for place, (name, key) in enumerate(curves.items())
        ]
        charts.append(draw_lines(title, series, segments=segments))
    return charts


def _lay_out(metrics: Mapping[int, Metrics]) -> tuple[list[Segment], dict[int, int]]:
    """Segments of the x axis, one an iteration, and where each starts."""
    segments: list[Segment] = []
    offsets: dict[int, int] = {}
    start = 0
    for t, lines in metrics.items():
        offsets[t] = start
        segments.append(Segment(name=f"M_{t} → M_{t + 1}", start=start, end=start + len(lines)))
        start += len(lines)
    return segments, offsets


def draw_selection(entries: Entries) -> str:
    """Held-out accuracy by step of each iteration's trial; "" without trials."""
    series = [
        Series(
            name=f"M_{entry['iteration']} → M_{entry['iteration'] + 1}",
            style=f"s{1 + place % 6}",
            marked=True,
            points=[(tried["step"], tried["accuracy"]) for tried in entry["selection"]["tried"]],
            intervals=[tuple(tried["accuracy_ci95"]) for tried in entry["selection"]["tried"]],
        )
        for place, entry in enumerate(entries)
        if entry["selection"]
    ]
    steps = sorted({int(step) for line in series for step, _ in line.points})
    shown = [(float(step), number(step)) for step in steps[:: 1 + len(steps) // 8]]
    note = "On held-out problems, by step of the trial; the best step is how long training went on."
    return draw_lines("Choice of the step", series, note=note, x_ticks=shown, y_format=percent)


def draw_pairs(entries: Entries) -> list[str]:
    """Where the problems went, and how many winners and losers they had."""
    paired = [entry for entry in entries if entry["pairs"]]
    bars = [Bar(name=f"M_{entry['iteration']}", parts=_where_problems_went(entry["pairs"])) for entry in paired]
    styles = [PartStyle(name=name, style=style) for _, name, style in _WHERE_PROBLEMS_WENT]
    return [
        draw_bars("Where the problems went", styles, bars, note="Training problems, by iteration."),
        _draw_histogram("Winners per problem", paired, "winners_per_problem"),
        _draw_histogram("Losers per problem", paired, "losers_per_problem"),
    ]


def _where_problems_went(pairs: Mapping[str, Any]) -> list[float]:
    counts = {"with_pairs": pairs["num_problems_with_pairs"], **pairs["num_problems_without_pairs"]}
    return [counts.get(key, 0) for key, _, _ in _WHERE_PROBLEMS_WENT]


def _draw_histogram(title: str, entries: Entries, key: str) -> str:
    series = []
    for place, entry in enumerate(entries):
        counts = {int(size): problems for size, problems in entry["pairs"].get(key, {}).items()}
        points = [(size, counts.get(size, 0)) for size in range(max(counts, default=-1) + 1)]
        series.append(Series(name=f"M_{entry['iteration']}", style=f"s{1 + place % 6}", points=points, marked=True))
    most = max((int(x) for line in series for x, _ in line.points), default=0)
    step = max(1, -(-most // 8))
    ticks = [(size, str(size)) for size in range(0, most + 1, step)]
    return draw_lines(
        title, series, x_ticks=ticks, note="Number of problems, by how many they had; first and last count."
    )


def draw_completions(entries: Entries) -> list[str]:
    """Verdicts, length and truncation of samples."""
    verdicts, lengths = [], []
    for split, name in (("train", "training problems"), ("test", "test problems")):
        shown = [(entry["iteration"], entry["completions"][split].get("sample")) for entry in entries]
        measured = [(t, counts) for t, counts in shown if counts]
        verdicts.append(_draw_verdicts(f"Verdicts of samples, {name}", measured))
        lengths.append(_draw_lengths(name, measured))
    series = [
        Series(
            name=f"{name}, {kind}",
            style=f"s{place + 1}",
            marked=True,
            points=[
                (entry["iteration"], found["truncated"] / found["count"])
                for entry in entries
                if (found := entry["completions"][split].get(kind))
            ],
        )
        for place, (split, name, kind) in enumerate(
            (("train", "training", "sample"), ("test", "test", "sample"), ("test", "test", "greedy"))
        )
    ]
    most = max((share for line in series for _, share in line.points), default=0.0)
    cut_off = draw_lines(
        "Cut off",
        series,
        note="Share of completions that ran out of tokens.",
        x_ticks=model_ticks(entries),
        y_range=(0.0, max(most, 0.01)),
        y_format=percent,
    )
    return [*verdicts, *lengths, cut_off]


def _draw_verdicts(title: str, measured: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    bars = [
        Bar(name=f"M_{t}", parts=[counts["by_verdict"].get(verdict, {}).get("count", 0) for verdict in _VERDICTS])
        for t, counts in measured
    ]
    return draw_bars(title, [PartStyle(name=verdict, style=f"v-{verdict}") for verdict in _VERDICTS], bars)


def _draw_lengths(name: str, measured: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    def of_verdict(verdict: str) -> list[Point]:
        found = [(t, counts["by_verdict"].get(verdict)) for t, counts in measured]
        return [(t, of["tokens"]["mean"]) for t, of in found if of]

    series = [
        Series(name="correct, mean", style="v-correct", marked=True, points=of_verdict("correct")),
        Series(name="wrong, mean", style="v-wrong", marked=True, points=of_verdict("wrong")),
        Series(
            name="95% are shorter",
            style="s1",
            marked=True,
            dashed=True,
            points=[(t, counts["tokens"]["p95"]) for t, counts in measured],
        ),
    ]
    ticks = [(float(t), f"M_{t}") for t, _ in measured]
    return draw_lines(f"Tokens of a sample, {name}", series, x_ticks=ticks)


def draw_time(entries: Entries) -> list[str]:
    """Wall time, device time and tokens, by iteration and stage."""
    stages = [PartStyle(name=name, style=style) for _, name, style in _STAGES]
    tokens = [PartStyle(name="sampled", style="s1"), PartStyle(name="trained on", style="s3")]
    charts = [
        draw_bars("Wall time", stages, _bars(entries, lambda entry: entry["seconds"]), value_format=duration),
        draw_bars("Tokens", tokens, [_token_bar(entry) for entry in entries], value_format=number),
    ]
    devices = [PartStyle(name=name, style=style) for key, name, style in _STAGES if key not in ("reference", "export")]
    for device, title in (("gpu", "GPU-hours"), ("cpu", "CPU-core-hours")):
        bars = [
            Bar(
                name=f"M_{entry['iteration']}",
                parts=[entry["cost"]["seconds"].get(style.name, {}).get(device, 0) / 3600 for style in devices],
            )
            for entry in entries
        ]
        charts.append(draw_bars(title, devices, bars, note="Wall time times what the stage had to itself."))
    return charts


def _bars(entries: Entries, pick: Callable[[Mapping[str, Any]], Mapping[str, float]]) -> list[Bar]:
    return [
        Bar(name=f"M_{entry['iteration']}", parts=[pick(entry).get(key, 0) for key, _, _ in _STAGES])
        for entry in entries
    ]


def _token_bar(entry: Mapping[str, Any]) -> Bar:
    tokens = entry["tokens"]
    return Bar(name=f"M_{entry['iteration']}", parts=[tokens.get("sampled", 0), tokens.get("trained", 0)])


def draw_comparison(runs: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Mapping[int, Metrics]]) -> list[str]:
    """Several runs in the same charts, one line a run."""
    longest = max((results["iterations"] for results in runs.values()), key=len)
    ticks = model_ticks(longest)

    def by_model(title: str, pick: Callable[[Mapping[str, Any]], tuple[float, Any] | None], y_format: Format) -> str:
        series = []
        for place, (name, results) in enumerate(runs.items()):
            found = [(entry["iteration"], pick(entry)) for entry in results["iterations"]]
            kept = [(t, value) for t, value in found if value is not None]
            points = [(t, value[0]) for t, value in kept]
            intervals = [tuple(value[1]) for _, value in kept if value[1]]
            series.append(Series(name=name, points=points, intervals=intervals, marked=True, **_style_of_run(place)))
        return draw_lines(title, series, x_ticks=ticks, y_format=y_format)

    charts = [
        by_model("Greedy accuracy", lambda entry: (entry["accuracy"], entry["accuracy_ci95"]), percent),
        by_model("Majority vote", lambda entry: _vote(entry["majority_vote"]), percent),
        by_model("Correct samples, test problems", lambda entry: _alone(entry["sample_accuracy"]), percent),
        by_model("Pairs", lambda entry: _alone(entry["num_pairs"]), number),
    ]
    segments, offsets = _lay_out(max(metrics.values(), key=lambda of_run: sum(map(len, of_run.values()))))
    return charts + [_compare_curve(title, key, metrics, segments, offsets) for title, key in _COMPARED_CURVES]


_COMPARED_CURVES = (
    ("Log-probability of chosen", "logprob/chosen"),
    ("Log-probability of rejected", "logprob/rejected"),
    ("Margin", "reward/margin"),
    ("Share of pairs with chosen ahead", "reward/accuracy"),
    ("DPO part of the loss", "loss/dpo"),
    ("NLL part of the loss", "loss/nll"),
)


def _compare_curve(
    title: str,
    key: str,
    metrics: Mapping[str, Mapping[int, Metrics]],
    segments: Sequence[Segment],
    offsets: Mapping[int, int],
) -> str:
    series = [
        Series(
            name=name,
            points=[
                (offsets[t] + line["step"], line[key])
                for t, lines in of_run.items()
                if t in offsets
                for line in lines
                if line.get(key) is not None
            ],
            **_style_of_run(place),
        )
        for place, (name, of_run) in enumerate(metrics.items())
    ]
    return draw_lines(title, series, segments=segments)


def _style_of_run(place: int) -> dict[str, Any]:
    return {"style": f"s{1 + place % 6}", "dashed": place >= 6}


def _vote(vote: Mapping[str, Any] | None) -> tuple[float, Any] | None:
    return (vote["accuracy"], vote["accuracy_ci95"]) if vote else None


def _alone(value: float | None) -> tuple[float, Any] | None:
    return None if value is None else (value, None)
