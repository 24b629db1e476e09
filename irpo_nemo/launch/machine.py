"""What this machine has for training, sampling and Slurm, and what to do about what it lacks. Imports nothing heavy.

Each examination is a function that yields findings and takes well under a second; where a program is asked, it gets a
deadline. On a login node without GPUs most say so, which is no fault.
"""

import ctypes
import fcntl
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

COMMAND_SECONDS = 5.0

SLURM_CLIENTS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo")

NETWORK_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "wekafs",
    "smb3",
    "cifs",
    "9p",
    "afs",
    "pvfs2",
)
"""As /proc/mounts calls them; fuse.NAME counts as NAME."""

LEAST_FREE_GIB = 50

LEAST_SHARED_MEMORY_GIB = 1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact."""

    state: Literal["ok", "note", "FAILED"]
    """FAILED: a run would fail here. note: it depends on what you want."""
    about: str
    text: str
    """What was found, and what to do if it is not good."""


def examine_machine(run_root: Path) -> Iterator[Finding]:
    """Every finding, in the order in which one would mend them."""
    yield from find_gpus()
    yield from find_nccl()
    yield from find_fabric(Path("/sys/class/infiniband"))
    yield from find_container_limits()
    yield from find_file_system(run_root)
    yield from find_slurm()


def find_gpus() -> Iterator[Finding]:
    """GPUs and driver, from nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        text = "no nvidia-smi: runs train on the CPU here. In a container, start it with --gpus all (docker) or --nv"
        yield Finding(state="note", about="GPUs", text=text)
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = _ask(query)
    if answer is None:
        text = f"nvidia-smi fails or hangs; run it by hand: {' '.join(query)}"
        yield Finding(state="FAILED", about="GPUs", text=text)
    else:
        yield Finding(state="ok", about="GPUs", text=describe_gpus(answer))


def describe_gpus(answer: str) -> str:
    """Count the equal lines of "name, memory, driver"."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    described = []
    for line in dict.fromkeys(lines):
        *about, driver = line.split(", ")
        described.append(f"{lines.count(line)} x {', '.join(about)}, driver {driver}")
    return "; ".join(described)


def find_nccl() -> Iterator[Finding]:
    """NCCL's version: of the library that a container brings, else of the wheel that torch came with."""
    try:
        library = ctypes.CDLL("libnccl.so.2")
        number = ctypes.c_int()
        library.ncclGetVersion(ctypes.byref(number))
        major, rest = divmod(number.value, 10000)
        version = f"{major}.{rest // 100}.{rest % 100}, libnccl.so.2"
    except OSError:
        names = {dist.name: dist.version for dist in distributions() if (dist.name or "").startswith("nvidia-nccl-")}
        version = ", ".join(f"{version}, {name}" for name, version in names.items())
    if version:
        yield Finding(state="ok", about="NCCL", text=version)
    else:
        text = "not found: training on several GPUs needs it; it comes with torch for CUDA and with NVIDIA's containers"
        yield Finding(state="note", about="NCCL", text=text)


def find_fabric(devices: Path) -> Iterator[Finding]:
    """InfiniBand, RoCE and EFA devices with the state of their ports."""
    ports = [port for port in sorted(devices.glob("*/ports/*")) if (port / "state").is_file()]
    if not ports:
        text = "no InfiniBand or EFA device: between nodes it is slow TCP. In a container, pass /dev/infiniband through"
        yield Finding(state="note", about="fabric", text=text)
        return
    active = []
    for port in ports:
        device, state = port.parents[1].name, _read(port / "state").partition(": ")[2]
        kind = "EFA" if device.startswith("efa") else _read(port / "link_layer") or "InfiniBand"
        if state == "ACTIVE":
            active.append(f"{device} {kind} {_read(port / 'rate')}".strip())
        else:
            yield Finding(state="note", about="fabric", text=f"{device} port {port.name} is {state or 'unknown'}")
    if active:
        yield Finding(state="ok", about="fabric", text=", ".join(active))
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY:
        text = (
            f"RDMA needs more locked memory than {locked // 1024} KiB: ulimit -l unlimited, docker --ulimit memlock=-1"
        )
        yield Finding(state="note", about="fabric", text=text)


def find_container_limits() -> Iterator[Finding]:
    """Shared memory, and what NVIDIA's images pin."""
    memory = Path("/dev/shm")
    if memory.is_dir() and (size := shutil.disk_usage(memory).total / 2**30) < LEAST_SHARED_MEMORY_GIB:
        text = f"{memory} has only {size:.2f} GiB for NCCL: docker run --ipc=host, or --shm-size=16g"
        yield Finding(state="note", about="shared memory", text=text)
    if constraint := os.environ.get("PIP_CONSTRAINT"):
        text = (
            f"PIP_CONSTRAINT={constraint} pins what NeMo needs otherwise; the Dockerfile shows how to install beside it"
        )
        yield Finding(state="note", about="pip", text=text)


def find_file_system(run_root: Path) -> Iterator[Finding]:
    """Whether runs can stand here: a file system that all nodes see, with atomic rename, locks and space."""
    folder = run_root.resolve()
    while not folder.exists():
        folder = folder.parent
    kind, point = file_system_of(folder, _read(Path("/proc/mounts")))
    if is_network_file_system(kind):
        yield Finding(state="ok", about="run_root", text=f"{folder} is on {kind} ({point}), which other nodes can see")
    else:
        text = (
            f"{folder} is on {kind} ({point}), of this machine alone; for several nodes set run_root to a shared folder"
        )
        yield Finding(state="note", about="run_root", text=text)
    yield try_files(folder)
    free = shutil.disk_usage(folder).free / 2**30
    enough = free >= LEAST_FREE_GIB
    text = f"{free:.0f} GiB free" + (
        "" if enough else "; a checkpoint takes 14 bytes a parameter, an iteration keeps two"
    )
    yield Finding(state="ok" if enough else "note", about="disk", text=text)


def file_system_of(folder: Path, mounts: str) -> tuple[str, str]:
    """Type and mount point of the file system that a folder is on, by the lines of /proc/mounts."""
    best = ("unknown", "/")
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if folder.is_relative_to(point) and len(point) >= len(best[1]):
            best = (fields[2], point)
    return best


def is_network_file_system(kind: str) -> bool:
    """Whether several machines can mount it."""
    return kind.removeprefix("fuse.") in NETWORK_FILE_SYSTEMS


def try_files(folder: Path) -> Finding:
    """Replace a file by rename, and take a lock that another process must not get."""
    trial, other = (folder / f".irpo-doctor.{os.getpid()}{suffix}" for suffix in ("", ".new"))
    try:
        trial.write_text("old")
        other.write_text("new")
        os.replace(other, trial)
        with trial.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holds = not _can_lock(trial)
    except OSError as error:
        text = f"{folder}: {error.strerror}; runs cannot be kept here, set run_root to a folder of yours"
        return Finding(state="FAILED", about="files", text=text)
    finally:
        for path in (trial, other):
            path.unlink(missing_ok=True)
    if not holds:
        text = f"{folder}: two processes get the same lock, so irpo could run twice at once; mount it with locks"
        return Finding(state="FAILED", about="files", text=text)
    return Finding(state="ok", about="files", text="atomic rename and locks work")


def _can_lock(path: Path) -> bool:
    """Whether another process gets the lock."""
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-S", "-c", code, str(path)], stderr=subprocess.DEVNULL, timeout=30)
    return done.returncode == 0


def find_slurm() -> Iterator[Finding]:
    """Slurm's clients, and whether the controller answers."""
    missing = [client for client in SLURM_CLIENTS if shutil.which(client) is None]
    if len(missing) == len(SLURM_CLIENTS):
        text = "no clients: runs go on this machine only. In a container this is right; submit from the login node"
        yield Finding(state="note", about="Slurm", text=text)
        return
    if missing:
        text = f"without {', '.join(missing)}: install the whole slurm-client"
        yield Finding(state="note", about="Slurm", text=text)
    partitions = _ask(["sinfo", "--noheader", "--format=%R %D %G"]) if shutil.which("sinfo") else None
    if partitions is None:
        text = "sinfo gets no answer, so nothing can be submitted: is slurmctld up, and SLURM_CONF right?"
        yield Finding(state="note", about="Slurm", text=text)
    else:
        rows = [" ".join(line.split()) for line in partitions.splitlines()]
        yield Finding(state="ok", about="Slurm", text=f"partitions, nodes, gres: {'; '.join(rows) or 'none'}")


def _ask(command: list[str]) -> str | None:
    """What a program prints; None where it fails or takes too long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
