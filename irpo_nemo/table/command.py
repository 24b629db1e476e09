"""What `irpo table` does: plan, show, or run and then show."""

from pathlib import Path

from irpo_nemo.errors import ConfigError, IRPOError
from irpo_nemo.table.layout import load_layout
from irpo_nemo.table.result import TableResult, collect_table
from irpo_nemo.table.runs import TablePlan, do_runs, estimate_by_seed
from irpo_nemo.table.write import print_result, write_result


def make_plan(table: str, *, folder: str | None, seeds: str | None, options: list[str]) -> TablePlan:
    """Read the table's file; refuse options that would change what its rows mean.

    Args:
        table: A name in conf/tables/, or the path of a YAML file.
        folder: Where its runs stand; runs/table_NAME when not given.
        seeds: Whole numbers with commas between; those of the file when not given.
        options: The user's overrides of every run.

    Raises:
        ConfigError: With every mistake, one a line.
    """
    layout = load_layout(table)
    layout.refuse_options(options)
    return TablePlan(
        layout=layout,
        folder=Path(folder or f"runs/table_{Path(table).stem}"),
        seeds=layout.seeds if seeds is None else _read_seeds(seeds),
        options=options,
    )


def _read_seeds(text: str) -> list[int]:
    if not all(seed.isdecimal() for seed in text.split(",")):
        raise ConfigError(f"seeds: is {text}, but whole numbers with commas between are wanted, such as seeds=0,1,2")
    return list(dict.fromkeys(int(seed) for seed in text.split(",")))


def print_plan(plan: TablePlan) -> None:
    """Every run as a command, and how long the table takes."""
    for seed in plan.seeds:
        for run in plan.layout.runs:
            print(plan.command_of(run, seed))
    _print_estimate(plan)


def show(plan: TablePlan) -> TableResult:
    """Print and write the table of what is done so far."""
    return _show(plan, {})


def run(plan: TablePlan) -> None:
    """Do what is left of the table, and show it.

    Raises:
        IRPOError: Some runs failed; the table is written all the same, and the others are in it.
    """
    _print_estimate(plan)
    failures = do_runs(plan, after_each=lambda: write_result(collect_table(plan, {})))
    _show(plan, failures)
    if failures:
        raise IRPOError("\n".join(f"{run}, seed {seed}: {reason}" for (run, seed), reason in failures.items()))


def _print_estimate(plan: TablePlan) -> None:
    """Loading every configuration also finds the mistakes in the user's options before anything starts."""
    estimates = estimate_by_seed(plan)
    each = ", ".join(f"{seconds / 60:.0f} min" for seconds in estimates.values())
    print(
        f"{len(plan.layout.runs)} runs for each of {len(plan.seeds)} seeds. With the quickstart's model, on 2 idle "
        f"cores, from nothing: {each}; {sum(estimates.values()) / 3600:.1f} h in all. What is done is not done again."
    )


def _show(plan: TablePlan, failures: dict[tuple[str, int], str]) -> TableResult:
    result = collect_table(plan, failures)
    print_result(result)
    write_result(result)
    print(f"table: {plan.folder}/table.md, table.json and figures")
    return result
