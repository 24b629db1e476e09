"""A Hugging Face model folder on disk: slices of its tensors in, a complete new folder out.

Safetensors only; nothing is unpickled. Knows nothing of Megatron or ranks.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from irpo_nemo.errors import ArtifactError, ModelError
from irpo_nemo.model_shape import ModelShape
from irpo_nemo.training.families import Piece

logger = logging.getLogger(__name__)

_OPEN_FILES = 2
"""A layer's tensors stand in one file, or at the end of one and the beginning of the next."""

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
)
"""Everything of the source folder that an exported model needs beside its weights. No Python code."""


class HFWeights:
    """The tensors of a folder, read slice by slice from one safetensors file or from several with an index."""

    def __init__(self, folder: Path | str, tensors: Mapping[str, tuple[int, ...]]) -> None:
        """Find each of `tensors` and check its shape.

        Raises:
            ModelError: Weights, a file or a tensor are missing, damaged, or of another shape.
        """
        self.folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._file_of = self._read_index()
        missing = sorted(set(tensors) - set(self._file_of))
        if missing:
            raise ModelError(
                f"{self.folder}: lacks tensor {missing[0]}, which config.json calls for "
                f"({len(missing)} of {len(tensors)} are missing)."
            )
        for name, wanted in tensors.items():
            found = tuple(self._slice(name).get_shape())
            if found != wanted:
                raise ModelError(f"{self.folder}: tensor {name} has shape {found}, but config.json calls for {wanted}.")

    def read(self, piece: Piece) -> Tensor:
        """Read one slice, in the dtype it is stored in."""
        rows = self._slice(piece.tensor)
        if piece.dim == 0:
            return rows[piece.start : piece.stop]
        return rows[:, piece.start : piece.stop]

    def read_whole(self, name: str) -> Tensor:
        """Read a tensor, in the dtype it is stored in."""
        return self._slice(name)[:]

    def dtype(self, name: str) -> str:
        """The stored dtype, as safetensors spells it."""
        return str(self._slice(name).get_dtype())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(self._slice(name).get_shape()) for name in sorted(self._file_of, key=self._file_of.__getitem__)
        }

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def _slice(self, name: str) -> Any:
        file = self._file_of[name]
        try:
            return self._open(file).get_slice(name)
        except SafetensorError as error:
            raise ModelError(
                f"{self.folder / file}: lacks tensor {name}, which {_INDEX_FILE} says it holds."
            ) from error

    def _open(self, file: str) -> Any:
        """Map a file into memory; what was read of it stays there until others have taken its place."""
        if file not in self._files:
            path = self.folder / file
            try:
                opened = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path}: cannot be read as safetensors ({error}).") from error
            if len(self._files) == _OPEN_FILES:
                del self._files[next(iter(self._files))]
            self._files[file] = opened
        return self._files[file]

    def _read_index(self) -> dict[str, str]:
        index_path = self.folder / _INDEX_FILE
        if index_path.is_file():
            try:
                weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
                return {str(name): Path(file).name for name, file in weight_map.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index_path}: is not an index of safetensors files ({error!r}).") from error
        if not (self.folder / _SINGLE_FILE).is_file():
            raise ModelError(
                f"{self.folder}: has neither {_SINGLE_FILE} nor {_INDEX_FILE}; safetensors weights are wanted."
            )
        return dict.fromkeys(self._open(_SINGLE_FILE).keys(), _SINGLE_FILE)


class HFFolderWriter:
    """Writes a model folder beside its place, and moves it there when complete: a reader sees all of it or nothing."""

    def __init__(self, target: Path | str, *, source: Path | str, max_shard_gib: float) -> None:
        """Start the folder with the source's configuration and tokenizer.

        Raises:
            ArtifactError: The target exists.
        """
        self.target = Path(target)
        refuse_existing(self.target)
        self._max_shard_bytes = int(max_shard_gib * 2**30)
        self._partial = self.target.with_name(f".{self.target.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        _copy_model_files(Path(source), self._partial)
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take more tensors; a shard is written as soon as it is full."""
        for name, tensor in tensors.items():
            num_bytes = tensor.numel() * tensor.element_size()
            if self._pending and self._pending_bytes + num_bytes > self._max_shard_bytes:
                self._write_shard()
            self._pending[name] = tensor.cpu().contiguous()
            self._pending_bytes += num_bytes
            self._total_bytes += num_bytes

    def finish(self, tensors: Mapping[str, tuple[int, ...]], *, dtype: torch.dtype) -> None:
        """Write what is left, read the folder back, and move it to its place.

        Raises:
            ArtifactError: What was read back is not `tensors` in `dtype`.
        """
        self._write_shard()
        self._name_shards()
        _verify(self._partial, tensors, dtype)
        for path in [*self._partial.iterdir(), self._partial]:
            _flush_to_disk(path)
        self._partial.rename(self.target)
        _flush_to_disk(self.target.parent)
        logger.info(
            "%s: wrote %d tensors, %.2f GiB, in %d files",
            self.target,
            len(tensors),
            self._total_bytes / 2**30,
            len(self._shards),
        )

    def _write_shard(self) -> None:
        path = self._partial / f"shard-{len(self._shards)}"
        save_file(self._pending, path, metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _name_shards(self) -> None:
        """Name the files as transformers does, which needs their number."""
        count = len(self._shards)
        if count == 1:
            (self._partial / "shard-0").rename(self._partial / _SINGLE_FILE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self._partial / f"shard-{number}").rename(self._partial / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self._partial / _INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def refuse_existing(target: Path) -> None:
    """Raise ArtifactError when something is already at the target."""
    if target.exists():
        raise ArtifactError(
            f"{target}: exists already, and an export does not overwrite. Delete it, or choose another place."
        )


def _copy_model_files(source: Path, target: Path) -> None:
    for pattern in _COPIED_FILES:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def _verify(folder: Path, tensors: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    try:
        written = HFWeights(folder, tensors)
    except ModelError as error:
        raise ArtifactError(f"The exported folder is damaged: {error}") from error
    wanted_dtype = _SAFETENSORS_DTYPES[dtype]
    wrong = [name for name in tensors if written.dtype(name) != wanted_dtype] + sorted(written.names - set(tensors))
    if wrong:
        raise ArtifactError(f"{folder}: tensor {wrong[0]} is not one of the model's in {wanted_dtype}.")


_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def stored_dtype(hf_config: dict[str, Any], folder: Path) -> torch.dtype:
    """The dtype that config.json gives the weights.

    Raises:
        ModelError: None that an export can have.
    """
    name = ModelShape.from_hf_config(hf_config).dtype
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in _SAFETENSORS_DTYPES}
    if name not in dtypes:
        raise ModelError(
            f"{folder}/config.json: dtype is {name!r}, which is not supported; known are {', '.join(dtypes)}"
        )
    return dtypes[name]


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
