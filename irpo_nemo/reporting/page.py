"""The page: one HTML file without links to anything, readable anywhere. Text from models and data is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

from irpo_nemo.artifacts import list_parts, read_records
from irpo_nemo.records import Candidate, GradedCandidate
from irpo_nemo.reporting.plots import plot_accuracy, plot_curves
from irpo_nemo.reporting.results import read_metrics
from irpo_nemo.reporting.table import make_rows, percent
from irpo_nemo.run_folder import IterationFolder, RunFolder

_NUM_EXAMPLES = 6

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; } svg { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.correct { color: #176f2c; } .wrong, .unparsable, .error { color: #a11; }
"""


def make_page(folder: RunFolder, results: dict[str, Any]) -> str:
    """The whole page as text."""
    title = escape(f"{results['run']} ({results['task']})")
    body = [f"<h1>{title}</h1>", *_make_accuracy(results)]
    for entry in results["iterations"]:
        body += _make_iteration(folder.iteration(entry["iteration"]), entry)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(body)}\n</body></html>\n'


def _make_accuracy(results: dict[str, Any]) -> list[str]:
    if not results["iterations"]:
        return ["<p>No model has been evaluated yet.</p>"]
    columns = ("model", "greedy", "95% interval", "majority vote", "samples", "pairs", "train loss")
    return [
        _make_table(columns, make_rows(results)),
        plot_accuracy(results["iterations"]),
    ]


def _make_iteration(folder: IterationFolder, entry: dict[str, Any]) -> list[str]:
    index = entry["iteration"]
    body = [f"<h2>M_{index}</h2>"]
    if (candidates := entry["candidates"]) and candidates["drawn"] < candidates["possible"]:
        spared = 1 - candidates["drawn"] / candidates["possible"]
        body.append(
            f"<p>Rounds drew {candidates['drawn']} of {candidates['possible']} candidates, which spared "
            f"{percent(spared)}.</p>"
        )
    if entry["pairs"]:
        without = sum(entry["pairs"]["num_problems_without_pairs"].values())
        body.append(
            f"<p>{entry['num_pairs']} pairs from {entry['pairs']['num_problems_with_pairs']} of "
            f"{entry['pairs']['num_problems']} problems; {without} gave none.</p>"
        )
    if entry["loss"]:
        metrics = read_metrics(folder.train.metrics)
        body.append(plot_curves(metrics, ("loss/total", "loss/dpo", "loss/nll"), ylabel="loss"))
        body.append(plot_curves(metrics, ("logprob/chosen", "logprob/rejected"), ylabel="log-probability a sequence"))
    examples = "\n".join(_make_examples(folder))
    return [*body, f"<details><summary>Completions of M_{index}</summary>\n{examples}\n</details>"]


def _make_examples(folder: IterationFolder) -> list[str]:
    """The first greedy completions of the evaluation set, with their verdicts."""
    parts = list_parts(folder.samples("test"))
    graded = folder.graded("test")
    if not parts or not (graded / parts[0].name).exists():
        return []
    grades = {grade.candidate_id: grade for grade in read_records(graded / parts[0].name, GradedCandidate)}
    greedy = [candidate for candidate in read_records(parts[0], Candidate) if candidate.kind == "greedy"]
    return [_make_example(candidate, grades[candidate.candidate_id]) for candidate in greedy[:_NUM_EXAMPLES]]


def _make_example(candidate: Candidate, grade: GradedCandidate) -> str:
    return (
        f'<p>{escape(candidate.problem_id)}: <b class="{grade.verdict}">{grade.verdict}</b>, '
        f"answer {escape(str(grade.answer))}, gold {escape(grade.gold_answer)}</p>\n<pre>{escape(candidate.text)}</pre>"
    )


def _make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
