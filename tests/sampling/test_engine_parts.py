"""Pieces that samplers with engines or servers share: endings, order, cleaned environments, guarded children."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from irpo_nemo.sampling import Completion
from irpo_nemo.sampling.child_process import clean_environment, kill_group, through_bash
from irpo_nemo.sampling.endings import close_completion, read_stop_ids
from irpo_nemo.sampling.ordering import order_for_reuse
from irpo_nemo.sampling.transformers import stop_token_ids
from irpo_nemo.tokenization import load_tokenizer
from tests.sampling.test_transformers import make_requests


@pytest.mark.parametrize("named", [7, [7, 9], None])
def test_stop_ids_are_those_of_the_transformers_sampler(
    model_folder: Path, tmp_path: Path, named: int | list[int] | None
) -> None:
    tokenizer = load_tokenizer(model_folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.generation_config.eos_token_id = named
    model.save_pretrained(tmp_path)
    assert read_stop_ids(tmp_path, tokenizer) == stop_token_ids(model, tokenizer)
    (tmp_path / "generation_config.json").unlink()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert read_stop_ids(tmp_path, tokenizer) == stop_token_ids(again, tokenizer)


@pytest.mark.parametrize(
    ("given", "reason", "stopped_by", "wanted", "ending"),
    [
        ([5, 6, 1], "stop", None, [5, 6, 1], "stop"),
        ([5, 6], "stop", None, [5, 6, 1], "stop"),  # the end-of-sequence token was taken off
        ([5, 6], "stop", 7, [5, 6, 7], "stop"),  # another stop token was
        ([5, 7, 6], "length", None, [5, 7], "stop"),  # the engine did not know that 7 ends a completion
        ([5, 6, 7], "length", None, [5, 6, 7], "stop"),  # it ended with its last token
        ([5, 6], "length", None, [5, 6], "length"),
        ([5, 6, 1], None, None, [5, 6, 1], "stop"),  # an engine that gives no reason, where the reason is plain
    ],
)
def test_all_engines_endings_come_out_the_same(
    model_folder: Path, given: list[int], reason: str | None, stopped_by: int | None, wanted: list[int], ending: str
) -> None:
    tokenizer = load_tokenizer(model_folder, trust_remote_code=False)
    assert tokenizer.eos_token_id == 1
    made = close_completion(given, reason, stopped_by=stopped_by, stop_ids=[1, 7], tokenizer=tokenizer)
    assert (made.token_ids, made.finish_reason) == (wanted, ending)


def test_an_ending_without_a_reason_is_a_failure(model_folder: Path) -> None:
    tokenizer = load_tokenizer(model_folder, trust_remote_code=False)
    made = close_completion([5], "cancelled", stop_ids=[1], tokenizer=tokenizer)
    assert made == Completion.failed("the engine ended it with 'cancelled' after 1 tokens")


def test_the_first_request_of_a_prompt_goes_ahead_of_the_rest_of_the_one_before() -> None:
    requests = make_requests(copies=3)[:9]
    assert order_for_reuse(requests) == [0, 3, 1, 2, 6, 4, 5, 7, 8]
    assert order_for_reuse([]) == []


def test_the_environment_of_an_engine_is_no_mpi_world() -> None:
    launcher = {"SLURM_JOB_ID": "1", "PMIX_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": "x"}
    launcher |= {"IRPO_LAUNCHER_PID": "1"}
    kept = {
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "/lib",
        "BASH_ENV": "/etc/bash.bashrc",
        "OMP_NUM_THREADS": "4",
    }
    assert clean_environment(launcher | kept) == kept


def test_bash_completes_the_environment(tmp_path: Path) -> None:
    """As NVIDIA's image does with LD_LIBRARY_PATH."""
    (tmp_path / "bashrc").write_text("export FROM_BASH=1\n")
    script = "import os; print(os.environ.get('FROM_BASH'))"
    environment = os.environ | {"BASH_ENV": str(tmp_path / "bashrc")}
    ended = subprocess.run(
        through_bash([sys.executable, "-c", script]), env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "1\n"


def test_a_guarded_child_hands_on_its_exit_code() -> None:
    assert subprocess.run(through_bash([sys.executable, "-c", "import sys; sys.exit(3)"])).returncode == 3


STUBBORN = """
import json, os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
script = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", script])
print(json.dumps([os.getpid(), child.pid]), flush=True)
time.sleep(99)
"""


def test_children_end_with_the_process_that_wanted_them_however_it_ends() -> None:
    parent = (
        "import subprocess, sys, time; from irpo_nemo.sampling.child_process import through_bash; "
        f"subprocess.Popen(through_bash([sys.executable, '-c', {STUBBORN!r}]), start_new_session=True); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = json.loads(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def test_a_group_that_is_gone_is_no_matter() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    kill_group(process.pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
