"""What a run consists of: its steps in order, what each reads and writes, and whether it is done.

    prepare ─► sft ─► M_0        (only when the run makes its own M_0)
    for t = 0 .. T:   M_t ─► sample ─► grade ─► pair ─► train ─► M_t+1        (M_T is sampled and graded only)
                                                  pair ─► trial ─► select ─► train        (with selection)
    report

A step is done when its manifest exists, was made from the same settings and the same inputs, and its outputs exist.
So `run` is also `resume`: it does the first step that is not done, and plans again. Settings are only those that
change a step's result: raising num_iterations or moving to another launcher invalidates nothing.

Knows files and digests; never torch, models or processes.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from irpo_nemo.artifacts import digest_of, hash_file, parts_of, read_manifest
from irpo_nemo.config import IRPOConfig, value_at
from irpo_nemo.config_checks import check_relations, find_missing_packages
from irpo_nemo.errors import ArtifactError, ConfigError, DataError
from irpo_nemo.model_shape import find_model_mistakes
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.selection import split_problems

State = Literal["done", "ready", "waiting", "stale"]
"""`ready`: all it reads is there; `waiting`: an earlier step is not done; `stale`: finished once, no longer valid."""

Kind = Literal["sampler", "trainer", "cpu"]
"""What a stage needs: the engine that draws completions, the training ranks, or neither."""

Split = Literal["train", "test"]

EVALUATION_SPLIT: Split = "test"
TRAINING_SPLIT: Split = "train"
ALL_SPLITS: tuple[Split, ...] = (TRAINING_SPLIT, EVALUATION_SPLIT)

MODEL_FOLDER = "model folder"
"""Name of the input that is the user's own model."""

_TASK = ("seed", "task")
_FREE_KEYS = (
    "keep_checkpoints",
    "num_workers",
    "num_processes",
    "checkpoint_every_steps",
    "async_checkpoints",
    "train_path",
    "extra_train_paths",
    "test_path",
    "dev_path",
    "shots_path",
    "pairs_path",
    "watched_pairs_path",
    "base_urls",
    "command",
    "api_key_variable",
    "max_attempts",
    "request_timeout_seconds",
    "patience_seconds",
    "max_failed_share",
    "start_timeout_seconds",
    "silence_timeout_seconds",
)
"""Last names of keys that change no result: housekeeping, patience, and paths whose files enter by
content."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of one iteration."""

    stage: str
    iteration: int | None
    settings: dict[str, Any]
    """The configuration values that its result depends on, by dotted key."""
    inputs: dict[str, str] | None
    """What it reads: name -> digest. None while an earlier step is not done."""
    outputs: tuple[Path, ...]
    """What later steps read; all exist when the step is done."""
    leftovers: tuple[Path, ...]
    """Everything it may write, to be cleared before it starts over."""
    manifest: Path
    kind: Kind
    has_shards: bool
    """Whether several processes can each do a share of it."""
    ranks: int
    """Processes that it takes."""
    state: State
    reason: str
    """Why it is not done, in words; empty when it is."""
    changed_settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Of a stale step: key -> (value it was made with, value now)."""
    changed_sources: tuple[str, ...] = ()
    """Of a stale step: the user's own files (problems, model folder) that are no longer what it was made from."""

    @property
    def title(self) -> str:
        return self.stage if self.iteration is None else f"iteration {self.iteration} {self.stage}"

    @property
    def ticket(self) -> Path:
        """Says what the work in progress was started from, so that leftovers of another start are not resumed."""
        return self.manifest.with_name(f"{self.stage}.started.json")

    @property
    def log_name(self) -> str:
        return self.stage if self.iteration is None else f"{self.stage}_{self.iteration:02d}"


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A step before its inputs are looked up."""

    stage: str
    iteration: int | None = None
    keys: tuple[str, ...] = ()
    after: tuple[tuple[str, int | None], ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    outputs: tuple[Path, ...]
    leftovers: tuple[Path, ...]
    manifest: Path
    kind: Kind = "cpu"
    has_shards: bool = False
    ranks: int = 1


def plan(config: IRPOConfig) -> list[Step]:
    """The steps of a run in the order in which they can be done, each with its state.

    Raises:
        DataError: A problem file is missing.
        ArtifactError: A manifest is damaged.
    """
    digests: dict[tuple[str, int | None], str | None] = {}
    steps = []
    for draft in _draft_steps(config):
        step = _examine(config, draft, digests)
        manifest = read_manifest(step.manifest) if step.state == "done" else None
        digests[step.stage, step.iteration] = manifest.digest if manifest else None
        steps.append(step)
    return steps


def find_step(config: IRPOConfig, stage: str, iteration: int | None) -> Step:
    """The step that a launcher names.

    Raises:
        ConfigError: The run has no such step.
    """
    steps = plan(config)
    for step in steps:
        if (step.stage, step.iteration) == (stage, iteration):
            return step
    asked = stage if iteration is None else f"{stage} iteration={iteration}"
    raise ConfigError(f"{asked}: this run has no such step. It has: {', '.join(step.title for step in steps)}.")


def model_of(config: IRPOConfig, iteration: int) -> Path:
    """The Hugging Face folder of M_t."""
    folder = RunFolder(config.run_folder)
    if iteration > 0:
        return folder.iteration(iteration - 1).hf
    return folder.model_zero.hf if config.sft.enabled else _external_model(config)


def initial_model_of(config: IRPOConfig) -> Path:
    """The Hugging Face folder that supervised fine-tuning starts from."""
    return RunFolder(config.run_folder).model_zero.initial if config.model.path is None else _external_model(config)


def splits_of(config: IRPOConfig, iteration: int) -> tuple[Split, ...]:
    """The problem sets that M_t is sampled on: M_T gives no pairs any more, and M_0 none when they are given."""
    gives_pairs = iteration < config.num_iterations and not _has_given_pairs(config, iteration)
    return ALL_SPLITS if gives_pairs else (EVALUATION_SPLIT,)


def _has_given_pairs(config: IRPOConfig, iteration: int) -> bool:
    return iteration == 0 and config.pairing.pairs_path is not None


def find_file_mistakes(config: IRPOConfig) -> Iterator[str]:
    """Yield the mistakes that show only on this machine: the model folder, its shape, problem files, packages."""
    from irpo_nemo.tasks import load_task

    yield from find_model_mistakes(config)
    yield from find_missing_trackers(config)
    pairs = config.pairing.pairs_path
    watched = config.sft.watched_pairs_path
    for key, path in (("pairing.pairs_path", pairs), ("sft.watched_pairs_path", watched)):
        if path is not None and not Path(path).is_file():
            yield f"{key}: {path} is not a file; name the pairs.parquet of an iteration"
    if config.launcher.name == "local":
        yield from find_missing_packages(config.training, section="training")
    if check_relations(config):
        return
    task = load_task(config)
    checks: list[Callable[[], Any]] = [task.train_problems, task.test_problems] if task.data_files() else []
    if config.selection.enabled:
        checks[:1] = [lambda: split_problems(config, task)]
    for load_problems in checks:
        try:
            load_problems()
        except DataError as error:
            yield str(error)


def find_missing_trackers(config: IRPOConfig) -> Iterator[str]:
    """Yield which tracker's library is asked for and not there."""
    for name, is_asked in (("wandb", config.tracking.wandb.enabled), ("mlflow", config.tracking.mlflow.enabled)):
        if is_asked and importlib.util.find_spec(name) is None:
            yield (
                f"tracking.{name}.enabled: is true, but {name} is not installed; "
                f"pip install 'irpo-nemo[{name}]', or set it to false"
            )


def refuse_changes(config: IRPOConfig, steps: list[Step]) -> None:
    """Refuse to go on with a run whose finished steps were made from something else.

    Raises:
        ConfigError: Settings of finished steps differ; names each key.
        ArtifactError: A problem file or the model folder has changed.
    """
    changes = {}
    for step in reversed(steps):
        changes.update({key: (step, *values) for key, values in step.changed_settings.items()})
    if changes:
        raise ConfigError(
            "\n".join(
                f"{key}: is {now}, but {step.title} in {config.run_folder} was made with {key}={then}. "
                f"Set {key}={then}, or start another run with name=..."
                for key, (step, then, now) in sorted(changes.items())
            )
        )
    for step in steps:
        if step.changed_sources:
            raise ArtifactError(
                f"{step.manifest}: {step.title} was made from another {' and '.join(step.changed_sources)}. "
                f"Put the old one back, start another run with name=..., or delete this file to redo the step."
            )


def _draft_steps(config: IRPOConfig) -> Iterator[_Draft]:
    sources = _data_digests(config)
    if config.sft.enabled:
        yield from _draft_model_zero(config, sources)
    for iteration in range(config.num_iterations + 1):
        yield from _draft_iteration(config, iteration, sources)
    yield _draft_report(config)


def _draft_model_zero(config: IRPOConfig, sources: dict[str, str]) -> Iterator[_Draft]:
    folder = RunFolder(config.run_folder).model_zero
    starts_random = config.model.path is None
    made = (folder.demonstrations, *([folder.initial] if starts_random else []))
    yield _Draft(
        stage="prepare",
        keys=(*_TASK, *(["model"] if starts_random else [])),
        sources=sources if starts_random else sources | _model_digest(config),
        outputs=made,
        leftovers=made,
        manifest=folder.manifest("prepare"),
    )
    yield _Draft(
        stage="sft",
        keys=("seed", "sft", "parallel"),
        after=(("prepare", None),),
        sources=({} if starts_random else _model_digest(config)) | _watched_digest(config),
        outputs=(folder.hf,),
        leftovers=(folder.train.root, folder.hf),
        manifest=folder.manifest("sft"),
        kind="trainer",
        ranks=config.launcher.ranks,
    )


def _draft_iteration(config: IRPOConfig, t: int, sources: dict[str, str]) -> Iterator[_Draft]:
    folder = RunFolder(config.run_folder).iteration(t)
    model_step: tuple[tuple[str, int | None], ...] = (("train", t - 1),) if t else (("sft", None),)
    model_source: dict[str, str] = {}
    if t == 0 and not config.sft.enabled:
        model_step, model_source = (), _model_digest(config)
    splits = splits_of(config, t)
    rule = ("pairing.num_pairs_per_problem", "pairing.unparsable", "grading") if config.sampling.round_size else ()
    disagreements = [folder.disagreements] if config.grading.audit else []

    yield _Draft(
        stage="sample",
        iteration=t,
        keys=(*_TASK, "sampling", "evaluation", "sampler", "model.trust_remote_code", "pairing.gold_solutions", *rule),
        after=model_step,
        sources=sources | model_source,
        outputs=tuple(folder.samples(split) for split in splits),
        leftovers=tuple(folder.samples(split) for split in ALL_SPLITS),
        manifest=folder.manifest("sample"),
        kind="sampler",
        has_shards=True,
    )
    yield _Draft(
        stage="grade",
        iteration=t,
        keys=(*_TASK, "grading"),
        after=(("sample", t),),
        sources=sources,
        outputs=(*(folder.graded(split) for split in splits), folder.evaluation, *disagreements),
        leftovers=(*(folder.graded(split) for split in ALL_SPLITS), folder.evaluation, folder.disagreements),
        manifest=folder.manifest("grade"),
    )
    if t == config.num_iterations:
        return
    pairs = (folder.pairs, folder.pairs_summary)
    is_given = _has_given_pairs(config, t)
    yield _Draft(
        stage="pair",
        iteration=t,
        keys=(*_TASK, "pairing"),
        after=model_step if is_given else (*model_step, ("sample", t), ("grade", t)),
        sources=_pairs_digest(config) | model_source if is_given else sources | model_source,
        outputs=pairs,
        leftovers=pairs,
        manifest=folder.manifest("pair"),
    )
    made_by_train: tuple[Path, ...] = (folder.reference, folder.hf)
    selected: tuple[tuple[str, int | None], ...] = ()
    if config.selection.enabled:
        yield from _draft_selection(config, t, after=(*model_step, ("pair", t)), sources=sources, model=model_source)
        made_by_train, selected = (folder.hf,), (("select", t),)
    yield _Draft(
        stage="train",
        iteration=t,
        keys=("seed", "loss", "training", "parallel"),
        after=(*model_step, ("pair", t), *selected),
        sources=model_source,
        outputs=made_by_train,
        leftovers=(*made_by_train, parts_of(folder.reference), folder.train.root),
        manifest=folder.manifest("train"),
        kind="trainer",
        ranks=config.launcher.ranks,
    )


def _draft_selection(
    config: IRPOConfig,
    t: int,
    *,
    after: tuple[tuple[str, int | None], ...],
    sources: dict[str, str],
    model: dict[str, str],
) -> Iterator[_Draft]:
    """The kept models are no outputs: when `select` has measured them, it drops all but the best."""
    folder = RunFolder(config.run_folder).iteration(t)
    trial = folder.trial
    yield _Draft(
        stage="trial",
        iteration=t,
        keys=(*_TASK, "loss", "training", "parallel", "selection"),
        after=after,
        sources=sources | model,
        outputs=(folder.reference, trial.steps),
        leftovers=(folder.reference, parts_of(folder.reference), trial.steps, trial.train.root, trial.models),
        manifest=folder.manifest("trial"),
        kind="trainer",
        ranks=config.launcher.ranks,
    )
    yield _Draft(
        stage="select",
        iteration=t,
        keys=(*_TASK, "selection", "sampling.max_new_tokens", "sampler", "grading", "model.trust_remote_code"),
        after=(("trial", t),),
        sources=sources,
        outputs=(folder.selection,),
        leftovers=(folder.selection, trial.root / "samples", trial.root / "graded"),
        manifest=folder.manifest("select"),
        kind="sampler",
    )


def _draft_report(config: IRPOConfig) -> _Draft:
    folder = RunFolder(config.run_folder)
    grades = [("grade", t) for t in range(config.num_iterations + 1)]
    trainings = [("train", t) for t in range(config.num_iterations)]
    made = (folder.results, folder.page, folder.page_data)
    return _Draft(
        stage="report", after=(*trainings, *grades), outputs=made, leftovers=made, manifest=folder.manifest("report")
    )


def _examine(config: IRPOConfig, draft: _Draft, digests: Mapping[tuple[str, int | None], str | None]) -> Step:
    """Look up the draft's inputs and compare them with its manifest."""
    settings = _settings_of(config, draft)
    inputs = dict(draft.sources)
    missing = []
    for stage, iteration in draft.after:
        digest = digests[stage, iteration]
        name = stage if iteration is None else f"iteration {iteration} {stage}"
        if digest is None:
            missing.append(name)
        else:
            inputs[name] = digest

    state: State = "done"
    reason = ""
    changed_settings: dict[str, tuple[Any, Any]] = {}
    changed_sources: tuple[str, ...] = ()
    manifest = read_manifest(draft.manifest)
    if missing:
        state, reason = "waiting", f"after {missing[-1]}"
    elif manifest is None:
        state = "ready"
    elif manifest.inputs != inputs:
        changed = sorted(k for k in inputs.keys() | manifest.inputs.keys() if inputs.get(k) != manifest.inputs.get(k))
        if not any(name in inputs and name not in draft.sources for name in changed):
            changed_sources = tuple(changed)
        state, reason = "stale", f"{', '.join(changed)} changed"
    elif manifest.settings != settings:
        state, changed_settings = "stale", _differences(manifest.settings, settings)
        reason = ", ".join(f"{key} was {then}, is {now}" for key, (then, now) in changed_settings.items())
    elif absent := [path for path in draft.outputs if not path.exists()]:
        state, reason = "stale", f"{absent[0].relative_to(config.run_folder)} is missing"
    return Step(
        stage=draft.stage,
        iteration=draft.iteration,
        settings=settings,
        inputs=None if missing else inputs,
        outputs=draft.outputs,
        leftovers=draft.leftovers,
        manifest=draft.manifest,
        kind=draft.kind,
        has_shards=draft.has_shards,
        ranks=draft.ranks,
        state=state,
        reason=reason,
        changed_settings=changed_settings,
        changed_sources=changed_sources,
    )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted(then.keys() | now.keys())
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}


def _settings_of(config: IRPOConfig, draft: _Draft) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key in draft.keys:
        settings |= dict(_flatten(key, value_at(config, key)))
    if "sampling.temperature" in settings and draft.iteration is not None:
        del settings["sampling.temperature"]
        settings[f"sampling.temperature[{draft.iteration}]"] = config.temperature_of(draft.iteration)
    return settings


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flatten(f"{key}.{name}", inner)
    elif key.rsplit(".", 1)[-1] not in _FREE_KEYS:
        yield key, value


def _data_digests(config: IRPOConfig) -> dict[str, str]:
    """Content of the problem files; a data set on a hub counts by its name."""
    from irpo_nemo.tasks import load_task

    task = load_task(config)
    files = enumerate(task.data_files(), start=1)
    digests = {f"problem file {number} ({path.name})": _hash_once(path) for number, path in files}
    return digests | {f"data set {name}": name for name in task.data_sets()}


def _hash_once(path: Path) -> str:
    """Hash a file, or the .json files below a folder."""
    paths = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    try:
        stats = [file.stat() for file in paths]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    versions = ((file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(paths, stats, strict=True))
    return _hash_version(path, tuple(versions))


@lru_cache
def _hash_version(path: Path, versions: tuple[tuple[Path, int, int], ...]) -> str:
    """Plans are made after every step; what was not touched is not read again."""
    if not path.is_dir():
        return hash_file(path)
    return digest_of([[file.relative_to(path).as_posix(), hash_file(file)] for file, _, _ in versions])


def _pairs_digest(config: IRPOConfig) -> dict[str, str]:
    assert config.pairing.pairs_path is not None
    return {"pairs file": _hash_once(Path(config.pairing.pairs_path))}


def _watched_digest(config: IRPOConfig) -> dict[str, str]:
    path = config.sft.watched_pairs_path
    return {} if path is None else {"watched pairs": _hash_once(Path(path))}


def _external_model(config: IRPOConfig) -> Path:
    assert config.model.path is not None, "check_relations lets no such configuration pass"
    return Path(config.model.path)


def _model_digest(config: IRPOConfig) -> dict[str, str]:
    """A fingerprint of the user's model folder, cheap even at 140 GB: names, sizes and the content of config.json."""
    folder = _external_model(config)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path: {folder} has no config.json; name a Hugging Face folder")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    listing = [[path.name, path.stat().st_size] for path in files]
    return {MODEL_FOLDER: digest_of([listing, _hash_once(folder / "config.json")])}
