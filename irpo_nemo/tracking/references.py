"""A run's artifacts as a tracker is told of them: where each is, and its digest. Nothing is uploaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from irpo_nemo.artifacts import read_manifest
from irpo_nemo.config import IRPOConfig
from irpo_nemo.pipeline import plan


@dataclass(frozen=True)
class Reference:
    """One file or model folder of a run."""

    name: str
    """Its path below the run folder."""
    path: Path
    digest: str
    """SHA-256 of what it holds; of a manifest, of all outputs of its stage."""

    @property
    def uri(self) -> str:
        return self.path.resolve().as_uri()


def read_references(config: IRPOConfig) -> Iterator[Reference]:
    """Each finished stage's manifest, and its outputs, except folders of parts, which the manifest stands for."""
    for step in plan(config):
        manifest = read_manifest(step.manifest) if step.state == "done" else None
        if manifest is None:
            continue
        yield Reference(step.manifest.relative_to(config.run_folder).as_posix(), step.manifest, manifest.digest)
        for path in step.outputs:
            name = path.relative_to(config.run_folder).as_posix()
            if name in manifest.outputs:
                yield Reference(name, path, manifest.outputs[name])
