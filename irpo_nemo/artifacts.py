"""Files of a run, written so that they are either whole or absent.

Everything goes to a temporary name in the same folder, is fsynced, and renamed. A stage is done when its manifest
exists and what the manifest recorded of its inputs still holds (`Manifest`). Nothing is ever unpickled.
"""

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import typing
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from irpo_nemo.errors import ArtifactError
from irpo_nemo.records import arrow_schema
from irpo_nemo.supervision import refuse_lost_lease

if typing.TYPE_CHECKING:
    import pyarrow as pa
    from _typeshed import DataclassInstance

    Record = TypeVar("Record", bound=DataclassInstance)
else:
    Record = TypeVar("Record")

TEMPORARY_SUFFIX = ".tmp"

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again, what is done is kept",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again, what is done is kept",
    errno.EROFS: "the file system is read-only; set run_root to a folder that can be written",
    errno.EACCES: "permission denied; set run_root to a folder that can be written",
    errno.EPERM: "permission denied; set run_root to a folder that can be written",
    errno.ENOTDIR: "a file stands where a folder is needed; set run_root or name to another folder",
    errno.EEXIST: "a file stands where a folder is needed; set run_root or name to another folder",
}


FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explain_os_errors(path: Path, *, among: Container[int] = _ADVICE) -> Iterator[None]:
    """Turn a full or read-only disk under `path` into an `ArtifactError` that says what to do; let others pass."""
    try:
        yield
    except Exception as error:
        code = _error_number(error)
        if code not in _ADVICE or code not in among:
            raise
        raise ArtifactError(f"{path}: cannot be written: {_ADVICE[code]}.") from error


def _error_number(error: Exception) -> int | None:
    """The operating system's number for `error`; packages written in Rust (safetensors) have it in the text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary name beside `path`, fsync what it wrote, and rename it to `path`.

    Raises:
        ArtifactError: The disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _fsync(temporary)
            refuse_lost_lease()
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Fsync every file below `temporary` and rename it to `folder`, replacing what stood there."""
    with explain_os_errors(folder):
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        refuse_lost_lease()
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _fsync(folder.parent)


def replace_link(link: Path, target: Path) -> None:
    """Let the symbolic link `link` name its neighbour `target` from one moment to the next."""
    temporary = link.with_name(f".{link.name}{TEMPORARY_SUFFIX}")
    with explain_os_errors(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        os.replace(temporary, link)
        _fsync(link.parent)


def link_tree(source: Path, target: Path) -> None:
    """Let `target` hold what `source` holds, a file or a folder, by hard links; by copies on another file system.

    Whatever happens to one of them afterwards, the other stays: files here are replaced, never changed in place.
    """
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, copy_function=_link_or_copy, ignore=_ignore_temporaries)
            folders = [target, *(path for path in target.rglob("*") if path.is_dir() and not path.is_symlink())]
            for folder in folders:
                _fsync(folder)
        else:
            _link_or_copy(str(source), str(target))
        _fsync(target.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
        _fsync(Path(target))


def _ignore_temporaries(folder: str, names: list[str]) -> list[str]:  # noqa: ARG001
    return [name for name in names if name.endswith(TEMPORARY_SUFFIX)]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing. Run the stage that writes it again with `irpo run`.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}). Delete it and run `irpo run` again.") from None


def write_records(path: Path, records: Sequence[Record], record_type: type[Record]) -> None:
    """Write `records` atomically as one Parquet file (zstd) with the schema of `record_type`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(record_type)
    columns = {name: [getattr(record, name) for record in records] for name in schema.names}
    table = pa.table(columns, schema=schema)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_records(path: Path, record_type: type[Record]) -> list[Record]:
    """Read one Parquet file that `write_records` wrote.

    Raises:
        ArtifactError: It is missing, damaged, or has other columns.
    """
    return [record_type(**row) for row in read_columns(path, record_type).to_pylist()]


def read_columns(
    path: Path, record_type: type, columns: Sequence[str] | None = None, *, problem_id: str | None = None
) -> "pa.Table":
    """Read some columns of a Parquet file of records, or all; of one problem, or all.

    Raises:
        ArtifactError: It is missing, damaged, or has other columns than `record_type`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = arrow_schema(record_type).names
    filters = None if problem_id is None else [("problem_id", "=", problem_id)]
    try:
        found = pq.read_schema(path).names
        if found == wanted:
            return pq.read_table(path, columns=columns and list(columns), filters=filters, partitioning=None)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing. Run the stage that writes it again with `irpo run`.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path}: damaged ({error}). Delete it and run `irpo run` again.") from None
    raise ArtifactError(
        f"{path}: has columns {found}, but {record_type.__name__} wants {wanted}: made by another version. "
        "Delete it and run `irpo run` again."
    )


def list_parts(folder: Path) -> list[Path]:
    """The finished Parquet parts of `folder`, in order."""
    return sorted(folder.glob("part-*.parquet"))


def part_path(folder: Path, index: int) -> Path:
    """The path of part `index` of `folder`."""
    return folder / f"part-{index:05d}.parquet"


def parts_of(path: Path) -> Path:
    """The folder of the parts that `path` is made of, while it is made."""
    return path.with_suffix(".parts")


def read_parts(folder: Path, record_type: type[Record]) -> Iterator[Record]:
    """Yield the records of all parts of `folder`, in order, holding one part in memory."""
    for path in list_parts(folder):
        yield from read_records(path, record_type)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _hash_stream(file)
        )


def _hash_stream(file: typing.BinaryIO) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def hash_model_folder(folder: Path) -> str:
    """SHA-256 over the configuration, the weights and the tokenizer of a Hugging Face folder, names included."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".model", ".txt", ".jinja"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{hash_file(path)}\0".encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one finished stage read, wrote and counted. Its existence means that the stage is done."""

    stage: str
    iteration: int | None
    settings: dict[str, Any]
    """The configuration values that the stage depends on, by dotted key."""
    inputs: dict[str, str]
    """What the stage read: name -> content digest."""
    outputs: dict[str, str]
    """Digest of what it wrote: path below the run folder -> SHA-256."""
    counts: dict[str, Any]
    """What happened, for people and for the report."""
    seconds: dict[str, float]
    """Wall time by part of the stage."""
    code: str | None = None
    """Digest of the program that made it."""
    model_hash: str | None = None
    """Of the weights that it read from the user's own model folder, whose inputs hold no more than a fingerprint."""
    taken_from: str | None = None
    """The run that made it, where this one took it over."""

    @property
    def digest(self) -> str:
        """Identity of the outputs, for the inputs of later stages; times do not enter."""
        return digest_of({"stage": self.stage, "outputs": self.outputs})


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest: the last act of a stage."""
    write_json(path, dataclasses.asdict(manifest))


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`, or None when the stage has not finished.

    Raises:
        ArtifactError: It is damaged or was written by another version.
    """
    if not path.exists():
        return None
    value = read_json(path)
    fields = dataclasses.fields(Manifest)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if not isinstance(value, dict) or not needed <= set(value) <= {field.name for field in fields}:
        raise ArtifactError(f"{path}: is not a manifest of this version. Delete it to redo the stage.")
    return Manifest(**value)


def hash_outputs(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Digest of each path, by its name below `root`: a model folder as one, any other with every file in it,
    temporary ones aside."""
    digests = {}
    for path in paths:
        if (path / "config.json").exists():
            digests[path.relative_to(root).as_posix()] = hash_model_folder(path)
            continue
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in (file for file in files if file.suffix != TEMPORARY_SUFFIX):
            digests[file.relative_to(root).as_posix()] = hash_file(file)
    return digests
