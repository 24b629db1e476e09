import os
import subprocess
import sys
from pathlib import Path

import pytest

from irpo_nemo.errors import ArtifactError
from irpo_nemo.launch.lock import hold_lock, is_locked


def test_a_second_run_of_the_same_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with hold_lock(path):
        assert is_locked(path)
        with pytest.raises(ArtifactError) as caught, hold_lock(path):
            pass
    assert str(caught.value) == (
        f"{tmp_path}: another `irpo run` is at work in this folder (process {os.getpid()} on {os.uname().nodename}). "
        f"Wait for it, or start another run with name=..."
    )
    assert not is_locked(path)
    with hold_lock(path):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    code = (
        "import os, signal, sys; from pathlib import Path; from irpo_nemo.launch.lock import hold_lock\n"
        "with hold_lock(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert path.exists()
    assert not is_locked(path)


def test_a_folder_without_a_lock_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "run.lock")
