"""Write report/: results.json, index.html and the data beside it; and the page that compares runs."""

from collections.abc import Sequence
from pathlib import Path

from irpo_nemo.artifacts import write_json, write_text
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ConfigError
from irpo_nemo.reporting.page import make_comparison_page, make_page
from irpo_nemo.reporting.results import collect_results, read_metrics
from irpo_nemo.reporting.shards import write_shards
from irpo_nemo.reporting.table import print_comparison
from irpo_nemo.run_folder import RunFolder


def write_report(folder: RunFolder, config: IRPOConfig) -> None:
    """Write all of it from what is done so far."""
    results = collect_results(folder, config)
    write_json(folder.results, results)
    iterations = [entry["iteration"] for entry in results["iterations"]]
    splits = write_shards(folder, config, iterations)
    write_text(folder.page, make_page(results, _read_all_metrics(folder, iterations), config, splits))


def compare_runs(configs: Sequence[IRPOConfig], page: Path) -> None:
    """Print the results of several runs as one table, and write a page with their charts.

    Raises:
        ConfigError: None of them has evaluated a model.
    """
    names = _name_apart([config.run_folder for config in configs])
    folders = {name: RunFolder(config.run_folder) for name, config in zip(names, configs, strict=True)}
    by_name = dict(zip(names, configs, strict=True))
    results = {name: collect_results(folder, by_name[name]) for name, folder in folders.items()}
    for name, of_run in results.items():
        if not of_run["iterations"]:
            raise ConfigError(f"{folders[name].root}: has evaluated no model yet, so there is nothing to compare.")
    iterations = {name: [entry["iteration"] for entry in of_run["iterations"]] for name, of_run in results.items()}
    metrics = {name: _read_all_metrics(folder, iterations[name]) for name, folder in folders.items()}
    print_comparison(results)
    write_text(page, make_comparison_page(results, metrics, by_name))


def _name_apart(folders: Sequence[Path]) -> list[str]:
    """The last names of the folders; as many of their parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len({*parts}):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read_all_metrics(folder: RunFolder, iterations: Sequence[int]) -> dict[int, list[dict[str, object]]]:
    """The steps of each iteration that has some."""
    found = {t: read_metrics(folder.iteration(t).train.metrics) for t in iterations}
    return {t: lines for t, lines in found.items() if lines}
