"""The file of a table, as dataclasses, with its mistakes reported together."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from irpo_nemo.config_files import config_root
from irpo_nemo.errors import ConfigError

DECODINGS = ("greedy", "majority", "pass@1")
SIDES = ("chosen", "rejected")
DIRECTIONS = ("rises", "falls")

_KEYS_OF_THE_TABLE = ("name", "run_root", "reuse_from", "seed")


@dataclass
class Row:
    """One accuracy: of M_iteration of a run."""

    id: str
    title: str
    run: str
    iteration: int
    decoding: str = "greedy"
    """One of DECODINGS."""
    paper: float | None = None
    """The paper's own number, in percent."""


@dataclass
class Comparison:
    """The claim that one row is more accurate than another."""

    says: str
    better: str
    worse: str


@dataclass
class Diminishing:
    """The claim that each step from one row to the next adds less than the step before."""

    says: str
    rows: list[str]


@dataclass
class CurveClaim:
    """The claim that training moves the log-prob of one side of the pairs."""

    says: str
    run: str
    side: str
    """One of SIDES."""
    direction: str
    """One of DIRECTIONS."""


@dataclass
class Figure:
    """Log-probs over training steps, a panel a run."""

    file: str
    title: str
    panels: dict[str, str]
    """Title -> run."""


@dataclass
class Layout:
    """What a table consists of."""

    source: str = ""
    """Where the numbers under `paper` are from."""
    base: str = "quickstart"
    """The configuration that every run overrides."""
    seeds: list[int] = field(default_factory=lambda: [0])
    overrides: list[str] = field(default_factory=list)
    """Of every run."""
    varied: list[str] = field(default_factory=list)
    """Keys in which the runs differ on purpose, so that nobody sets them for all runs at once."""
    runs: dict[str, list[str]] = field(default_factory=dict)
    """Name -> its own overrides, in which {folder} is the folder with the runs of the seed."""
    rows: list[Row] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    diminishing: list[Diminishing] = field(default_factory=list)
    curves: list[CurveClaim] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def row(self, row_id: str) -> Row:
        """The row with this id."""
        return next(row for row in self.rows if row.id == row_id)

    def overrides_of(self, run: str, *, seed: int, folder: Path, options: list[str]) -> list[str]:
        """The overrides of `base` that make the run; `options` are the user's, for every run.

        A run looks for finished steps among the runs of its seed.
        """
        here = _escape(folder)
        own = [override.replace("{folder}", here) for override in self.runs[run]]
        place = [f"name={run}", f"run_root={here}", f"reuse_from=[{here}]", f"seed={seed}"]
        return [*self.overrides, *options, *own, *place]

    def refuse_options(self, options: list[str]) -> None:
        """Refuse options that would take a difference between runs away, or that the table sets itself.

        Raises:
            ConfigError: With every such option, one a line.
        """
        mistakes = []
        for option in options:
            key = option.split("=", 1)[0].lstrip("+~")
            if key in _KEYS_OF_THE_TABLE:
                mistakes.append(f"{key}: is set by the table itself; give seeds=0,1,2 and folder=DIR")
            if key in self.varied:
                mistakes.append(f"{key}: is what the table's runs differ in; change it in a copy of the table's file")
        if mistakes:
            raise ConfigError("\n".join(mistakes))


def _escape(path: Path) -> str:
    """A path as it stands in an override, in Hydra's grammar."""
    return re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", str(path))


def table_names() -> list[str]:
    """The tables that conf/ holds."""
    return sorted(path.stem for path in (config_root() / "tables").glob("*.yaml"))


def load_layout(table: str) -> Layout:
    """Read the table that `irpo table` names: one of conf/tables/, or the path of a YAML file.

    Raises:
        ConfigError: There is no such table, or with every mistake in it, one a line.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(table) if table.endswith((".yaml", ".yml")) else config_root() / "tables" / f"{table}.yaml"
    if not path.is_file():
        raise ConfigError(f"{table}: no such table. Give a path, or one of: {', '.join(table_names())}.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Layout), OmegaConf.load(path))
        layout = cast(Layout, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{table}: {' '.join(str(error).split())}") from error
    if mistakes := list(_find_mistakes(layout)):
        raise ConfigError("\n".join(f"{table}: {mistake}" for mistake in mistakes))
    return layout


def _find_mistakes(layout: Layout) -> Iterator[str]:
    ids = [row.id for row in layout.rows]
    yield from (f"rows: {name} comes twice" for name in sorted({name for name in ids if ids.count(name) > 1}))
    if not layout.seeds:
        yield "seeds: is empty, but needs one at least"
    for part, names in _used_runs(layout):
        yield from (f"{part}: names run {name}, which is not under runs" for name in names if name not in layout.runs)
    for part, names in _used_rows(layout):
        yield from (f"{part}: names row {name}, which is not under rows" for name in names if name not in ids)
    choices: list[tuple[list[Any], str, tuple[str, ...]]] = [
        (list(layout.rows), "decoding", DECODINGS),
        (list(layout.curves), "side", SIDES),
        (list(layout.curves), "direction", DIRECTIONS),
    ]
    for items, name, known in choices:
        for value in (dataclasses.asdict(item)[name] for item in items):
            if value not in known:
                yield f"{name}: is {value}, but must be one of {', '.join(known)}"


def _used_runs(layout: Layout) -> Iterator[tuple[str, list[str]]]:
    yield from ((f"row {row.id}", [row.run]) for row in layout.rows)
    yield from ((f"curves, {curve.says!r}", [curve.run]) for curve in layout.curves)
    yield from ((f"figure {figure.file}", list(figure.panels.values())) for figure in layout.figures)


def _used_rows(layout: Layout) -> Iterator[tuple[str, list[str]]]:
    yield from ((f"comparisons, {claim.says!r}", [claim.better, claim.worse]) for claim in layout.comparisons)
    yield from ((f"diminishing, {claim.says!r}", claim.rows) for claim in layout.diminishing)
