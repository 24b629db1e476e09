"""A process that a supervisor started: it ends when told, when it hangs, and when another start has its lease."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from irpo_nemo.artifacts import write_json
from irpo_nemo.errors import DataError, MachineError
from irpo_nemo.supervision import note_failure, refuse_lost_lease

STAGE = "from irpo_nemo.supervision import accept_supervision; accept_supervision(); import time; "


def run_stage(code: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", STAGE + code]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)


def test_without_a_supervisor_nothing_happens() -> None:
    done = run_stage("print('hello')")
    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_a_stage_that_is_told_to_stop_gets_a_signal(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("me\nstop\n")
    done = run_stage("time.sleep(30)", IRPO_LEASE=str(tmp_path / "lease"), IRPO_LEASE_OWNER="me")
    assert done.returncode == -signal.SIGUSR1


def test_a_stage_that_is_replaced_ends(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    lease.write_text("me\n")
    code = f"open({str(lease)!r}, 'w').write('another'); time.sleep(30)"
    done = run_stage(code, IRPO_LEASE=str(lease), IRPO_LEASE_OWNER="me")
    assert done.returncode == 1
    assert done.stderr == f"{lease}: another start of this job has taken over (another); this one ends\n"


def test_a_stage_that_is_replaced_puts_nothing_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = tmp_path / "lease"
    monkeypatch.setenv("IRPO_LEASE", str(lease))
    monkeypatch.setenv("IRPO_LEASE_OWNER", "me")
    lease.write_text("me\n")
    write_json(tmp_path / "result.json", 1)
    lease.write_text("another\n")
    with pytest.raises(MachineError, match="another start of this job has taken over"):
        write_json(tmp_path / "result.json", 2)
    assert (tmp_path / "result.json").read_text() == "1\n"
    assert {path.name for path in tmp_path.iterdir()} == {"lease", "result.json"}
    lease.unlink()
    refuse_lost_lease()  # an unreadable lease says nothing of another start


def test_a_stage_that_hangs_prints_its_stacks_and_ends(tmp_path: Path) -> None:
    code = "exec('def stuck():\\n    time.sleep(30)'); stuck()"
    done = run_stage(code, IRPO_HANG_SECONDS="0.5", IRPO_RANK_LOGS=str(tmp_path), RANK="3")
    log = (tmp_path / "rank_3.log").read_text()
    assert done.returncode == 1
    assert log.startswith("Timeout (0:00:00.500000)!\n")
    assert "in stuck" in log


def test_output_goes_to_the_ranks_log_and_rank_zeros_lines_to_the_jobs(tmp_path: Path) -> None:
    code = "import logging; logging.getLogger('irpo_nemo').warning('a line'); print('noise')"
    first, second = (run_stage(code, IRPO_RANK_LOGS=str(tmp_path), RANK=rank) for rank in "01")
    assert first.stdout.endswith("  a line\n")
    assert second.stdout == ""
    assert "noise" in (tmp_path / "rank_1.log").read_text()


def test_a_failure_is_noted_with_time_kind_rank_and_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRPO_RANK_LOGS", str(tmp_path))
    monkeypatch.setenv("RANK", "5")
    note_failure(DataError("x"), "first\nlast\n")
    header, *message = (tmp_path / "failed_5").read_text().splitlines()
    assert header.split()[1:] == ["DataError", "5", os.uname().nodename]
    assert float(header.split()[0]) > 0
    assert message == ["first", "last"]
