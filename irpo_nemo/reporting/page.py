"""The page: one HTML file that asks no network for anything. Text from models and data is escaped.

It carries its style sheet, its charts and its script; what the browser of problems shows stands in files beside it
(see `shards`). A policy in its head lets a browser run that script and those files, and nothing else.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from irpo_nemo.config import IRPOConfig, value_at, walk_fields
from irpo_nemo.reporting.charts import duration, number
from irpo_nemo.reporting.figures import (
    Metrics,
    draw_accuracy,
    draw_comparison,
    draw_completions,
    draw_pairs,
    draw_selection,
    draw_time,
    draw_training,
)
from irpo_nemo.reporting.table import COLUMNS, make_rows, percent

_HERE = Path(__file__).parent
_SECTIONS = ("Accuracy", "Training", "Pairs", "Completions", "Time and cost", "Problems", "Settings")

_STAGES = ("sample", "grade", "pair", "trial", "select", "train_stage")

_STEPS_NOTE = (
    '<p class="note">Curves run over the steps of one iteration after the other. Beside each name stand the first and '
    "the last value; where there are many steps, a line is a mean and the band behind it holds all values.</p>"
)


def make_page(
    results: Mapping[str, Any], metrics: Mapping[int, Metrics], config: IRPOConfig, splits: Sequence[str]
) -> str:
    """The whole page of one run as text.

    Args:
        results: The content of results.json.
        metrics: The steps of each iteration that is trained.
        config: Of the run.
        splits: Whose problems stand in report/data.
    """
    entries = results["iterations"]
    if not entries:
        body = ["<p>No model has been evaluated yet.</p>"]
    else:
        last = max(metrics, default=None)
        sections = {
            "Accuracy": [
                _make_table(COLUMNS, make_rows(results), "Each model on the test problems"),
                _grid(draw_accuracy(entries)),
            ],
            "Training": [
                _STEPS_NOTE,
                _grid([*draw_training(metrics), draw_selection(entries)])
                if last is not None
                else "<p>Nothing has been trained yet.</p>",
            ],
            "Pairs": [*_tell_spared(entries), _grid(draw_pairs(entries)), _make_pairs_table(entries)],
            "Completions": [_grid(draw_completions(entries))],
            "Time and cost": [
                *_tell_model_zero(results["model_zero"]),
                *_tell_origins(entries),
                _grid(draw_time(entries)),
            ],
            "Problems": [_make_browser(splits)],
            "Settings": [_make_settings(config)],
        }
        body = [_make_tiles(entries)]
        for title in _SECTIONS:
            body += [f'<section id="{_anchor(title)}"><h2>{title}</h2>', *sections[title], "</section>"]
    about = (
        f"{results['task']}, seed {results['seed']}, {len(entries)} of {results['num_iterations'] + 1} models evaluated"
    )
    return _make_document(results["run"], about, body, _SECTIONS if entries else ())


def make_comparison_page(
    runs: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Mapping[int, Metrics]],
    configs: Mapping[str, IRPOConfig],
) -> str:
    """A page that shows several runs side by side, each by its name."""
    rows = [(name, *row) for name, results in runs.items() for row in make_rows(results)]
    body = [
        '<section id="accuracy"><h2>Accuracy</h2>',
        _make_table(("run", *COLUMNS), rows, "Each model on the test problems"),
        '</section><section id="charts"><h2>Charts</h2>',
        _STEPS_NOTE,
        _grid(draw_comparison(runs, metrics)),
        '</section><section id="settings"><h2>Settings that differ</h2>',
        _make_table(("setting", *configs), _find_differences(configs), "", style="settings"),
        "</section>",
    ]
    return _make_document("Comparison", ", ".join(runs), body, ("Accuracy", "Charts", "Settings"))


def _make_document(title: str, about: str, body: Sequence[str], sections: Sequence[str]) -> str:
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = (_HERE / "browser.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}' 'self' file:; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<li><a href="#{_anchor(name)}">{name}</a></li>' for name in sections)
    text = "\n".join(body)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}, irpo-nemo</title><style>{style}</style></head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header class="top"><h1>{escape(title)}</h1><p>{escape(about)}</p>
<button type="button" id="theme">Light or dark</button></header>
<nav class="sections" aria-label="Sections"><ul>{links}</ul></nav>
<main id="content">
{text}
</main>
<script>{script}</script>
</body></html>
"""


def _digest(text: str) -> str:
    """What a content security policy knows an inline script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, style: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = (
        f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption or columns[0], quote=True)}">'
        f'<table class="{style}">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _make_tiles(entries: Sequence[Mapping[str, Any]]) -> str:
    """The run at a glance."""
    first, last = entries[0], entries[-1]
    vote = last["majority_vote"]
    seconds = sum(_stage_seconds(entry["seconds"]) for entry in entries)
    tiles = [
        (
            f"Greedy, M_{first['iteration']} to M_{last['iteration']}",
            f"{percent(first['accuracy'])} → {percent(last['accuracy'])}",
        ),
        ("Change", f"{100 * (last['accuracy'] - first['accuracy']):+.1f} points", _compare_intervals(first, last)),
        (f"Majority of {vote['k']}, M_{last['iteration']}", percent(vote["accuracy"])) if vote else None,
        ("Pairs", number(sum(entry["num_pairs"] or 0 for entry in entries))),
        ("Tokens sampled", number(sum(entry["tokens"].get("sampled", 0) for entry in entries))),
        ("Wall time, iterations", duration(seconds), _sum_cost(entries)),
    ]
    cells = (
        f"<div><dt>{escape(tile[0])}</dt><dd>{escape(tile[1])} <small>{escape(' '.join(tile[2:]))}</small></dd></div>"
        for tile in tiles
        if tile
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _compare_intervals(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    low, high = first["accuracy_ci95"]
    is_apart = last["accuracy_ci95"][0] > high or last["accuracy_ci95"][1] < low
    return "intervals apart" if is_apart else "intervals overlap"


def _stage_seconds(seconds: Mapping[str, float]) -> float:
    return sum(seconds.get(stage, 0.0) for stage in _STAGES)


def _sum_cost(entries: Sequence[Mapping[str, Any]]) -> str:
    sums = {
        name: sum(stage.get(device, 0.0) for entry in entries for stage in entry["cost"]["seconds"].values()) / 3600
        for device, name in (("gpu", "GPU-hours"), ("cpu", "CPU-core-hours"))
    }
    return ", ".join(f"{number(hours)} {name}" for name, hours in sums.items() if hours)


def _tell_spared(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sampling in rounds did not need to draw."""
    counts = [(entry["iteration"], entry["candidates"]) for entry in entries if entry["candidates"]]
    return [
        f"<p>M_{t}: rounds drew {drawn['drawn']} of {drawn['possible']} candidates, which spared "
        f"{percent(1 - drawn['drawn'] / drawn['possible'])}.</p>"
        for t, drawn in counts
        if drawn["drawn"] < drawn["possible"]
    ]


def _tell_model_zero(made: Mapping[str, Any] | None) -> list[str]:
    """What M_0 took, when it was fine-tuned here; it belongs to no iteration."""
    if made is None:
        return []
    time = duration(made["seconds"]["total"])
    return [f"<p>Before the iterations, M_0: {number(made['steps'])} steps of fine-tuning, {time}.</p>"]


def _tell_origins(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What other runs had done already."""
    return [
        f"<p>M_{entry['iteration']} {stage}: taken over from {escape(origin)}, at no cost here.</p>"
        for entry in entries
        for stage, origin in entry["taken_from"].items()
    ]


def _make_pairs_table(entries: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        "pairs": "num_pairs",
        "problems with pairs": "num_problems_with_pairs",
        "problems": "num_problems",
        "pairs too long": "num_pairs_too_long",
        "pairs over the limit": "num_pairs_subsampled_away",
        "duplicates dropped": "num_duplicates_dropped",
        "unparsable dropped": "num_unparsable_dropped",
        "grader errors": "num_grader_errors",
        "disputed": "num_disputed",
        "gold refused": "num_gold_refused",
    }
    paired = [entry for entry in entries if entry["pairs"]]
    if not paired:
        return "<p>No pairs have been made yet.</p>"
    rows = [
        (f"M_{entry['iteration']}", *(str(entry["pairs"].get(key, 0)) for key in columns.values())) for entry in paired
    ]
    return _make_table(("model", *columns), rows, "Pairs, and what was left out")


def _make_settings(config: IRPOConfig) -> str:
    """The settings that differ from their defaults."""
    defaults = IRPOConfig()
    keys = [key for key, _, _ in walk_fields(IRPOConfig)]
    rows = [(key, str(value_at(config, key))) for key in keys if value_at(config, key) != value_at(defaults, key)]
    return _make_table(("setting", "value"), rows, "What differs from the defaults", style="settings")


def _find_differences(configs: Mapping[str, IRPOConfig]) -> list[tuple[str, ...]]:
    """Settings that are not the same in all runs, with their values."""
    rows = []
    for key, _, _ in walk_fields(IRPOConfig):
        values = [str(value_at(config, key)) for config in configs.values()]
        if len(set(values)) > 1 and key not in ("name", "run_root"):
            rows.append((key, *values))
    return rows


def _make_browser(splits: Sequence[str]) -> str:
    """The form, the list and the place for a problem; browser.js fills them."""
    names = {"train": "training", "test": "test"}
    shown = [split for split in ("test", "train") if split in splits]
    options = "".join(f'<option value="{split}">{names[split]}</option>' for split in shown)
    changes = (("any", "any change"), ("better", "got better"), ("worse", "got worse"), ("same", "stayed the same"))
    orders = (
        ("order", "as in the data"),
        ("gained", "most gained first"),
        ("lost", "most lost first"),
        ("hard", "fewest correct first"),
        ("easy", "most correct first"),
    )
    return f"""
<form id="filters" role="search" aria-label="Problems">
<label class="wide">Search in questions and completions, or for an id
<input type="search" id="query" autocomplete="off" spellcheck="false"></label>
<label>Problems <select id="split">{options}</select></label>
<label>Model <select id="model"></select></label>
<label>Verdict <select id="verdict"></select></label>
<label><span id="change-basis">Change</span>
<select id="change">{_options(changes)}</select></label>
<label>from <select id="from"></select></label>
<label>to <select id="to"></select></label>
<label>Order <select id="sort">{_options(orders)}</select></label>
<button type="reset">Show all</button>
</form>
<p id="found" role="status">Loading …</p>
<noscript><p>Looking at problems needs JavaScript.</p></noscript>
<div class="browser">
<div id="list" aria-busy="true"><ol id="items" aria-label="Problems found"></ol>
<nav class="pager" aria-label="Pages"><button type="button" id="earlier">Earlier</button>
<span id="pages" role="status"></span>
<button type="button" id="later">Later</button></nav></div>
<div id="problem" role="region" aria-label="One problem"></div>
</div>"""


def _options(choices: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<option value="{value}">{text}</option>' for value, text in choices)
