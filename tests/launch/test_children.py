"""Real processes: ranks that succeed, fail, hang, and lose their launcher."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from irpo_nemo.errors import DataError, MachineError
from irpo_nemo.launch.children import Interrupted, StageCrashed, failure_path, run_children

FAIL_AS_A_STAGE = """
    from irpo_nemo.launch.children import send_failure
    import sys

    def fail(error, code):
        send_failure(error)
        sys.exit(code)
"""


def run(
    tmp_path: Path, code: str, *, ranks: int = 1, threads: int | None = 1, tick: Callable[[], None] = lambda: None
) -> list[str]:
    """Run Python code as a stage; return what rank 0 showed."""
    script = tmp_path / "stage.py"
    script.write_text(textwrap.dedent(FAIL_AS_A_STAGE) + textwrap.dedent(code))
    shown: list[str] = []
    run_children(
        [sys.executable, str(script)],
        ranks=ranks,
        threads_per_rank=threads,
        log=tmp_path / "logs" / "stage.log",
        show=shown.append,
        tick=tick,
        grace_seconds=5.0,
    )
    return shown


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], *, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_rank_zero_reaches_terminal_and_log_and_the_others_their_own_logs(tmp_path: Path) -> None:
    code = """
        import os
        print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "threads", os.environ["OMP_NUM_THREADS"])
        print("for the log", file=sys.stderr)
    """
    assert run(tmp_path, code, ranks=2, threads=3) == ["rank 0 of 2 threads 3"]
    first, second = (tmp_path / "logs" / name for name in ("stage.log", "stage_rank1.log"))
    assert "rank 0 of 2" in first.read_text()
    assert "rank 1 of 2" in second.read_text()
    assert all("for the log" in log.read_text() for log in (first, second))


def test_ranks_can_meet_at_the_address_they_are_given(tmp_path: Path) -> None:
    code = """
        import datetime, os, torch.distributed as dist
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), 2, os.environ["RANK"] == "0",
                              timeout=datetime.timedelta(seconds=30))
        store.set(os.environ["RANK"], "here")
        store.wait(["0", "1"])
        store.add("done", 1)
        while os.environ["RANK"] == "0" and store.add("done", 0) < 2:
            pass
        print("met")
    """
    assert run(tmp_path, code, ranks=2) == ["met"]


def test_a_stage_of_one_process_is_told_of_no_ranks(tmp_path: Path) -> None:
    assert run(tmp_path, "import os; print('RANK' in os.environ)", threads=None) == ["False"]


def test_waiting_threads_sleep_unless_the_user_wants_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; print(os.environ['OMP_WAIT_POLICY'])"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run(tmp_path, code) == ["PASSIVE"]
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert run(tmp_path, code) == ["ACTIVE"]


def test_a_childs_mistake_is_raised_here_as_it_was(tmp_path: Path) -> None:
    code = "from irpo_nemo.errors import DataError; fail(DataError('train.jsonl:7: is not JSON'), 2)"
    with pytest.raises(DataError, match=r"^train\.jsonl:7: is not JSON$"):
        run(tmp_path, code)
    assert (
        json.loads(failure_path(tmp_path / "logs" / "stage.log").read_text())["message"] == "train.jsonl:7: is not JSON"
    )


def test_the_first_failure_is_the_one_that_is_told(tmp_path: Path) -> None:
    code = """
        import os, time
        if os.environ["RANK"] == "0":
            time.sleep(0.5)
            fail(RuntimeError("connection closed by peer"), 1)
        fail(ValueError("the cause"), 1)
    """
    with pytest.raises(StageCrashed) as caught:
        run(tmp_path, code, ranks=2)
    assert "ValueError: the cause" in str(caught.value)
    assert str(caught.value).endswith(f"rank 1 failed; its log is {tmp_path}/logs/stage_rank1.log")


def test_one_failing_rank_ends_the_others_at_once(tmp_path: Path) -> None:
    code = """
        import os, time
        if os.environ["RANK"] == "1":
            fail(ValueError("early"), 1)
        print(os.getpid(), flush=True)
        time.sleep(600)
    """
    started = time.monotonic()
    with pytest.raises(StageCrashed, match="early"):
        run(tmp_path, code, ranks=2)
    assert time.monotonic() - started < 10


def test_a_killed_rank_is_explained(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(MachineError, match=r"stage\.log: rank 0 was killed \(signal 9\), most often because memory"):
        run(tmp_path, code)


def test_an_unexplained_end_shows_the_end_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(StageCrashed) as caught:
        run(tmp_path, "print('last words', file=sys.stderr); sys.exit(7)")
    assert "last words" in str(caught.value)
    assert str(caught.value).endswith(f"rank 0 exited with 7; its log is {tmp_path}/logs/stage.log")


def test_a_very_long_reason_arrives(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, "from irpo_nemo.errors import DataError; fail(DataError('\\u0444' * 100_000 + 'end'), 2)")
    assert str(caught.value).endswith("end")


def test_an_old_failure_is_forgotten_when_the_stage_starts_again(tmp_path: Path) -> None:
    with pytest.raises(StageCrashed):
        run(tmp_path, "fail(ValueError('once'), 1)")
    run(tmp_path, "")
    assert not failure_path(tmp_path / "logs" / "stage.log").exists()


def test_an_interruption_reaches_the_children_and_their_children(tmp_path: Path) -> None:
    code = f"""
        import os, signal, subprocess, time
        grandchild = subprocess.Popen(["sleep", "600"])
        def note(signum, frame):
            open({str(tmp_path / "signal")!r}, "w").write(str(signum))
            sys.exit(0)
        signal.signal(signal.SIGTERM, note)
        open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{grandchild.pid}}\\n")
        time.sleep(600)
    """
    pids = tmp_path / "pids"

    def interrupt() -> None:
        if pids.exists() and pids.read_text().endswith("\n"):
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(tmp_path, code, tick=interrupt)
    assert (tmp_path / "signal").read_text() == str(int(signal.SIGTERM))
    assert wait_until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))


LAUNCHER = """
    import sys
    from pathlib import Path
    from irpo_nemo.launch.children import run_children

    run_children([sys.executable, "-c", sys.argv[2]], ranks=2, threads_per_rank=1, grace_seconds=5.0,
                 log=Path(sys.argv[1]), show=print, tick=lambda: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_children_die_with_a_killed_launcher(tmp_path: Path) -> None:
    child = """
        import os, pathlib, time
        from irpo_nemo.launch.children import die_with_launcher
        die_with_launcher()
        pathlib.Path(os.environ["PID_FOLDER"], os.environ["RANK"]).write_text(f"{os.getpid()}\\n")
        time.sleep(600)
    """
    log = str(tmp_path / "logs" / "stage.log")
    arguments = [sys.executable, "-c", textwrap.dedent(LAUNCHER), log, textwrap.dedent(child)]
    launcher = subprocess.Popen(arguments, env=os.environ | {"PID_FOLDER": str(tmp_path)}, stdout=subprocess.DEVNULL)
    try:
        files = [tmp_path / rank for rank in "01"]
        assert wait_until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
        pids = [int(file.read_text()) for file in files]
        assert all(is_alive(pid) for pid in pids)
    finally:
        launcher.kill()
        launcher.wait()
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids))
