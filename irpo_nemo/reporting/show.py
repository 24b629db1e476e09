"""One problem on the terminal: its prompt, every candidate of every model with its verdict, and the pairs."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from irpo_nemo.artifacts import list_parts, read_columns
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ConfigError
from irpo_nemo.records import GradedCandidate
from irpo_nemo.reporting.candidates import JudgedCandidate, JudgedProblem, Pair, find_problem, read_pairs
from irpo_nemo.reporting.questions import Questions
from irpo_nemo.reporting.results import SPLITS
from irpo_nemo.reporting.table import open_console
from irpo_nemo.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_STYLES = {"correct": "green", "wrong": "red", "unparsable": "yellow", "error": "magenta"}


def show_problem(config: IRPOConfig, problem_id: str, *, iteration: int | None = None) -> None:
    """Print what is known of a problem: of M_t alone, or of every model that has been graded.

    Raises:
        ConfigError: No graded model has a problem of that name.
    """
    folder = RunFolder(config.run_folder)
    wanted = range(config.num_iterations + 1) if iteration is None else (iteration,)
    console = open_console()
    for split in SPLITS:
        found = {t: find_problem(folder.iteration(t), split, problem_id) for t in wanted}
        judged = {t: problem for t, problem in found.items() if problem is not None}
        if judged:
            pairs = {
                t: read_pairs(folder.iteration(t), problem_id).get(problem_id, []) if split == "train" else []
                for t in judged
            }
            _print_question(console, Questions(config, split), problem_id, next(iter(judged.values())).gold_answer)
            _print_summary(console, judged, pairs)
            for t, problem in judged.items():
                _print_candidates(console, t, problem, pairs[t])
            return
    raise ConfigError(f"{problem_id}: is no graded problem of {folder.root}.{_suggest(folder, wanted, problem_id)}")


def _suggest(folder: RunFolder, iterations: Sequence[int], problem_id: str) -> str:
    ids: set[str] = set()
    for split in SPLITS:
        for part in (part for t in iterations for part in list_parts(folder.iteration(t).graded(split))):
            ids.update(read_columns(part, GradedCandidate, ("problem_id",))["problem_id"].unique().to_pylist())
    close = difflib.get_close_matches(problem_id, sorted(ids), n=3, cutoff=0.0)
    return f" It has {len(ids)}, such as {', '.join(close)}." if close else " It has none yet."


def _print_question(console: "Console", questions: Questions, problem_id: str, gold: str) -> None:
    from rich.text import Text

    console.rule(Text(problem_id))
    prompt = questions.prompts.get(problem_id)
    console.print(Text(prompt if prompt is not None else "(the task's problem file is not there any more)"))
    console.print(Text.assemble("\ngold answer: ", (gold, "bold")))


def _print_summary(
    console: "Console", judged: Mapping[int, JudgedProblem], pairs: Mapping[int, Sequence[Pair]]
) -> None:
    """A row for each model."""
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "greedy", "samples correct", "pairs")
    for t, problem in judged.items():
        greedy = next((candidate for candidate in problem.candidates if candidate.kind == "greedy"), None)
        samples = [candidate for candidate in problem.candidates if candidate.kind == "sample"]
        num_correct = sum(candidate.verdict == "correct" for candidate in samples)
        table.add_row(
            f"M_{t}",
            _judgement(greedy) if greedy else Text("-"),
            f"{num_correct} of {len(samples)}" if samples else "-",
            str(len(pairs[t])) if pairs[t] else "-",
        )
    console.print(table)


def _judgement(candidate: JudgedCandidate) -> "Text":
    from rich.text import Text

    return Text.assemble((candidate.verdict, _STYLES[candidate.verdict]), f" {candidate.answer or ''}")


def _print_candidates(console: "Console", t: int, problem: JudgedProblem, pairs: Sequence[Pair]) -> None:
    from rich.text import Text

    console.rule(Text(f"M_{t}"), align="left")
    for candidate in problem.candidates:
        facts = [f"rule {candidate.layer}", f"{candidate.num_tokens} tokens"]
        if candidate.finish_reason != "stop":
            facts.append({"length": "cut off", "failed": "not drawn"}[candidate.finish_reason])
        if candidate.audit_verdict is not None:
            facts.append(f"second grader: {candidate.audit_verdict}")
        head = Text.assemble((f"{candidate.kind} {candidate.index}  ", "bold"), _judgement(candidate))
        console.print(head, Text(f"({', '.join(facts)})", "dim"))
        console.print(Text(candidate.text))
    for number, (chosen, rejected) in enumerate(pairs):
        console.print(Text(f"pair {number}: {chosen} over {rejected}"))
