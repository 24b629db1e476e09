"""Do the runs of a table that are not done, seed by seed, each as `irpo run` would.

A run that fails for a reason of its own (no pairs, for one) does not stop the others; its rows are missing, and the
table says why. An interruption stops everything, and the same command goes on from there.
"""

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import load_config
from irpo_nemo.errors import ConfigError, IRPOError
from irpo_nemo.launch.local import run_locally
from irpo_nemo.pipeline import find_file_mistakes
from irpo_nemo.table.layout import Layout
from irpo_nemo.table.workload import estimate_seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """A table, where it is made, and how large."""

    layout: Layout
    folder: Path
    seeds: Sequence[int]
    options: list[str]
    """The user's overrides of every run."""

    def folder_of(self, seed: int) -> Path:
        """The folder with the runs of a seed."""
        return self.folder / f"seed_{seed}"

    def overrides_of(self, run: str, seed: int) -> list[str]:
        """What makes the run out of the base configuration."""
        return self.layout.overrides_of(run, seed=seed, folder=self.folder_of(seed), options=self.options)

    def command_of(self, run: str, seed: int) -> str:
        """The same run by hand."""
        return shlex.join(["irpo", "run", self.layout.base, *self.overrides_of(run, seed)])

    def load(self, run: str, seed: int) -> IRPOConfig:
        """The configuration of a run, without a look at the files that it names.

        Raises:
            ConfigError: With every mistake in it, one a line.
        """
        config = load_config(self.layout.base, self.overrides_of(run, seed))
        if config.launcher.name != "local":
            raise ConfigError(
                f"launcher: is {config.launcher.name}, but a table does its runs on this machine, one after the other. "
                "Set launcher=local, or start the runs by hand: --plan prints their commands."
            )
        return config


def estimate_by_seed(plan: TablePlan) -> dict[int, float]:
    """Seconds that each seed of the table takes from nothing."""
    estimates = {}
    for seed in plan.seeds:
        known: set[str] = set()
        estimates[seed] = sum(estimate_seconds(plan.load(run, seed), known) for run in plan.layout.runs)
    return estimates


def do_runs(plan: TablePlan, after_each: Callable[[], None]) -> dict[tuple[str, int], str]:
    """Do every run that is not done; return why runs failed, by run and seed.

    Args:
        plan: Of the table.
        after_each: Called when a run ends that was not done before.

    Raises:
        StageCrashed: A stage failed by a bug.
        Interrupted: SIGINT or SIGTERM.
    """
    failures = {}
    total = len(plan.seeds) * len(plan.layout.runs)
    numbered = enumerate(((seed, run) for seed in plan.seeds for run in plan.layout.runs), start=1)
    for number, (seed, run) in numbered:
        try:
            logger.info("run %d of %d: %s, seed %d", number, total, run, seed)
            config = load_config(plan.layout.base, plan.overrides_of(run, seed), also_check=find_file_mistakes)
            if run_locally(config):
                after_each()
        except IRPOError as error:
            failures[run, seed] = str(error)
            logger.warning("%s, seed %d: %s", run, seed, error)
    return failures
