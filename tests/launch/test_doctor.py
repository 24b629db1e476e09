"""What doctor finds on a machine: each finding is exact, on real files and on what programs and the kernel print."""

import subprocess
import sys
from pathlib import Path

import pytest

from irpo_nemo.launch.machine import (
    describe_gpus,
    examine_machine,
    file_system_of,
    find_fabric,
    find_file_system,
    is_network_file_system,
    try_files,
)

MOUNTS = """\
/dev/root / ext4 rw,relatime 0 0
10.0.0.2@tcp:/work /lustre lustre rw,flock 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
server:/my\\040runs /home/a/my\\040runs fuse.wekafs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind", "point"),
    [
        ("/tmp/runs", "ext4", "/"),
        ("/lustre/team/runs", "lustre", "/lustre"),
        ("/lustreish", "ext4", "/"),
        ("/home/a/my runs/x", "fuse.wekafs", "/home/a/my runs"),
    ],
)
def test_a_folder_is_on_the_longest_mount_above_it(folder: str, kind: str, point: str) -> None:
    assert file_system_of(Path(folder), MOUNTS) == (kind, point)


def test_file_systems_that_nodes_share_are_known() -> None:
    kinds = ("ext4", "lustre", "nfs4", "fuse.wekafs", "overlay", "tmpfs")
    assert [is_network_file_system(kind) for kind in kinds] == [False, True, True, True, False, False]


def test_rename_and_locks_are_tried_and_nothing_is_left(tmp_path: Path) -> None:
    found = try_files(tmp_path)
    assert (found.state, found.text) == ("ok", "atomic rename and locks work")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_failure() -> None:
    found = try_files(Path("/proc"))
    assert found.state == "FAILED"
    assert found.text.endswith("runs cannot be kept here, set run_root to a folder of yours")


def test_a_run_root_that_is_not_there_yet_is_examined_where_it_will_be(tmp_path: Path) -> None:
    texts = [finding.text for finding in find_file_system(tmp_path / "a" / "b")]
    assert texts[0].startswith(f"{tmp_path} is on ")
    assert "atomic rename and locks work" in texts
    assert not (tmp_path / "a").exists()


def make_port(root: Path, device: str, *, state: str, layer: str, rate: str) -> None:
    port = root / device / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")
    (port / "link_layer").write_text(f"{layer}\n")
    (port / "rate").write_text(f"{rate}\n")


def test_the_ports_of_the_fabric_are_read_from_the_kernel(tmp_path: Path) -> None:
    make_port(tmp_path, "mlx5_0", state="4: ACTIVE", layer="InfiniBand", rate="400 Gb/sec (4X NDR)")
    make_port(tmp_path, "mlx5_1", state="1: DOWN", layer="Ethernet", rate="40 Gb/sec (4X QDR)")
    make_port(tmp_path, "efa_0", state="4: ACTIVE", layer="Unspecified", rate="200 Gb/sec")
    found = [(finding.state, finding.text) for finding in find_fabric(tmp_path)]
    assert ("note", "mlx5_1 port 1 is DOWN") in found
    assert ("ok", "efa_0 EFA 200 Gb/sec, mlx5_0 InfiniBand 400 Gb/sec (4X NDR)") in found


def test_without_a_fabric_the_way_over_tcp_is_named(tmp_path: Path) -> None:
    (found,) = find_fabric(tmp_path)
    assert found.state == "note"
    assert "TCP" in found.text


def test_equal_gpus_are_counted() -> None:
    answer = "NVIDIA H100 80GB HBM3, 81559 MiB, 570.86.15\n" * 8 + "NVIDIA A2, 15356 MiB, 570.86.15\n"
    assert describe_gpus(answer) == (
        "8 x NVIDIA H100 80GB HBM3, 81559 MiB, driver 570.86.15; 1 x NVIDIA A2, 15356 MiB, driver 570.86.15"
    )


def test_every_finding_says_something_and_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    abouts = {finding.about for finding in examine_machine(tmp_path)}
    assert {"GPUs", "NCCL", "fabric", "run_root", "files", "disk", "Slurm"} <= abouts
    code = (
        "import sys, pathlib; from irpo_nemo.launch.machine import examine_machine\n"
        "list(examine_machine(pathlib.Path('.')))\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'megatron', 'numpy', 'pyarrow'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
