"""Steps that another run has finished: found by what they were made from, checked, and taken over.

Two runs that share M_0 and its candidates, such as the rows of a table, make them once. The manifest of a step says
what it was made from; a finished step of a run in `reuse_from` is this run's own step, its *twin*, when the code, the
settings and the inputs agree. Inputs are digests of contents, so the chain back to M_0 agrees too. Its files become
hard links: either run can be deleted without harm to the other.

Knows manifests and files; never what a stage does.
"""

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import irpo_nemo
from irpo_nemo.artifacts import (
    Manifest,
    digest_of,
    hash_file,
    hash_model_folder,
    hash_outputs,
    link_tree,
    read_manifest,
    write_manifest,
)
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError
from irpo_nemo.pipeline import MODEL_FOLDER, Step
from irpo_nemo.run_folder import RunFolder

logger = logging.getLogger(__name__)

_ROOMS_WITHOUT_EFFECT = ("cli.py", "__main__.py", "grade_file", "launch", "planning", "reporting", "table", "tracking")
"""What a step makes does not depend on these."""

_SHARED = ("prepare", "sft", "sample", "grade", "pair", "train")
"""Stages whose outputs are all that later ones read: a trial's models are none, and are dropped once measured."""

_READ_WEIGHTS = ("sft", "sample", "train")


@dataclass(frozen=True)
class Twin:
    """A step of another run that is this run's step."""

    run: Path
    manifest: Manifest


def take_over(config: IRPOConfig, step: Step) -> bool:
    """Make the step done with what its twin left; False when it has none, or its files are no longer what they were.

    Killed halfway, it leaves files without a manifest, which the next start clears.
    """
    twin = find_twin(config, step)
    if twin is None:
        return False
    for path in (step.ticket, step.manifest, *step.leftovers):
        _remove(path)
    try:
        for path in step.leftovers:
            source = twin.run / path.relative_to(config.run_folder)
            if source.exists():
                link_tree(source, path)
        is_whole = hash_outputs(config.run_folder, step.outputs) == twin.manifest.outputs
    except (FileNotFoundError, shutil.Error):  # deleted, or made again, at this moment
        is_whole = False
    if not is_whole:
        logger.warning("%s of %s is not whole any more; doing it here", step.title, twin.run)
        for path in step.leftovers:
            _remove(path)
        return False
    origin = twin.manifest.taken_from or str(twin.run)
    write_manifest(step.manifest, dataclasses.replace(twin.manifest, taken_from=origin))
    logger.info("%s is taken over from %s", step.title, origin)
    return True


def find_twin(config: IRPOConfig, step: Step) -> Twin | None:
    """The first finished step, of the runs in `reuse_from`, that was made from the same as this one; None for none."""
    if step.stage not in _SHARED or step.inputs is None:
        return None
    own = config.run_folder.resolve()
    for run in _list_runs(config):
        if run.resolve() == own:
            continue
        try:
            manifest = read_manifest(run / step.manifest.relative_to(config.run_folder))
        except ArtifactError:
            continue  # that run will say so itself
        if manifest is not None and _is_same(config, step, manifest):
            return Twin(run, manifest)
    return None


def is_taken_over(step: Step) -> bool:
    """Whether the step is done because it was taken over."""
    manifest = read_manifest(step.manifest)
    return (
        manifest is not None
        and manifest.taken_from is not None
        and (manifest.settings, manifest.inputs) == (step.settings, step.inputs)
        and all(path.exists() for path in step.outputs)
    )


def hash_own_model(config: IRPOConfig, step: Step) -> str | None:
    """Hash of the weights in the user's own model folder, when the step reads them: its inputs know names and sizes
    only, which two models of one shape share."""
    if step.stage not in _READ_WEIGHTS or MODEL_FOLDER not in (step.inputs or {}):
        return None
    assert config.model.path is not None
    return hash_model_folder(Path(config.model.path))


@lru_cache(maxsize=1)
def hash_code() -> str:
    """Digest of the package's source, without the rooms that change no result."""
    root = Path(irpo_nemo.__file__).parent
    paths = (path.relative_to(root) for path in sorted(root.rglob("*.py")))
    return digest_of(
        {path.as_posix(): hash_file(root / path) for path in paths if path.parts[0] not in _ROOMS_WITHOUT_EFFECT}
    )


def _list_runs(config: IRPOConfig) -> Iterator[Path]:
    """The run folders that `reuse_from` names, or that stand in a folder it names, by name."""
    for name in config.reuse_from:
        folder = Path(name)
        if RunFolder(folder).config.exists():
            yield folder
        elif folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if RunFolder(path).config.exists())


def _is_same(config: IRPOConfig, step: Step, manifest: Manifest) -> bool:
    outputs = [path.relative_to(config.run_folder).as_posix() for path in step.outputs]
    return (
        manifest.code == hash_code()
        and manifest.settings == step.settings
        and manifest.inputs == step.inputs
        and {_top(path, outputs) for path in manifest.outputs} == set(outputs)
        and _is_same_model(config, step, manifest)
    )


def _top(path: str, outputs: list[str]) -> str | None:
    """The output that `path` is, or is in."""
    return next((output for output in outputs if path == output or path.startswith(f"{output}/")), None)


def _is_same_model(config: IRPOConfig, step: Step, manifest: Manifest) -> bool:
    if MODEL_FOLDER not in manifest.inputs:
        return True
    return manifest.model_hash is not None and manifest.model_hash == hash_own_model(config, step)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
