"""The sampler and the worker against a double with the recorded surface of TensorRT-LLM 1.2.1, in real processes."""

import ast
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.artifacts import list_parts, read_parts
from irpo_nemo.config import ENGINE_OPTIONS, IRPOConfig, TensorRTLLMConfig
from irpo_nemo.config_checks import check_relations
from irpo_nemo.config_files import dump_config
from irpo_nemo.errors import ConfigError, MachineError
from irpo_nemo.records import Candidate
from irpo_nemo.sampling import Completion, SamplingRequest, open_sampler
from irpo_nemo.sampling.gpus import list_gpus
from irpo_nemo.sampling.parts import sample_split
from irpo_nemo.sampling.tensorrt_llm import WORKER, engine_arguments, share_gpus
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import load_tokenizer
from tests.sampling.conftest import make_config
from tests.sampling.test_engine_parts import is_alive
from tests.sampling.test_transformers import make_requests

DOUBLE = Path(__file__).with_name("double")
SURFACE = json.loads(Path(__file__).with_name("tensorrt_llm_1_2_1.json").read_text())
CRASH, HANG, NO_REASON, CANCELLED, CUT_STOP, REQUEST_ERROR = 901, 902, 903, 904, 905, 906


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two GPUs and the double, as far as an engine can tell. Returns where the double writes what it is asked."""
    monkeypatch.setenv("PYTHONPATH", str(DOUBLE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("DOUBLE_RECORD", str(tmp_path / "record.jsonl"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path / "record.jsonl"


def make_engine_config(folder: Path, *, batch_size: int = 4, **options: Any) -> IRPOConfig:
    config = make_config(batch_size=batch_size)
    config.run_root = str(folder)
    config.sampler.name = "tensorrt_llm"
    config.sampler.tensorrt_llm = TensorRTLLMConfig(
        **{"sampler_type": "TRTLLMSampler", "start_timeout_seconds": 60.0, "silence_timeout_seconds": 30.0, **options}
    )
    return config


def ask(config: IRPOConfig, folder: Path, requests: list[SamplingRequest]) -> list[Completion]:
    sampler = open_sampler(config, folder)
    try:
        return sampler.generate(requests)
    finally:
        sampler.close()


def read_record(path: Path, key: str) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        if key in (entry := json.loads(line)):
            yield entry


def troubled(requests: list[SamplingRequest], place: int, trouble: int) -> list[SamplingRequest]:
    """The request at `place` with a prompt that the double takes amiss."""
    other = dataclasses.replace(requests[place], prompt_token_ids=[5, trouble], problem_id="trouble")
    return [*requests[:place], other, *requests[place + 1 :]]


# --- The contract: every call that the worker makes, against the recorded surface ---


def calls_of(function: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(WORKER.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == function:
                yield node


def test_every_argument_of_every_engine_exists(tmp_path: Path, model_folder: Path) -> None:
    for changes in ({}, {"cuda_graphs": False}, {"options": dict.fromkeys(ENGINE_OPTIONS)}):
        arguments = engine_arguments(
            make_engine_config(tmp_path, **changes).sampler, model_folder, trust_remote_code=False
        )
        assert set(arguments) <= set(SURFACE["LLM"]["keyword"])
        assert not set(arguments) & set(SURFACE["absent_in_1_2_1"]["LLM"])
        assert set(arguments["kv_cache_config"]) <= set(SURFACE["KvCacheConfig"])
        assert set(arguments["cuda_graph_config"] or {}) <= set(SURFACE["CudaGraphConfig"])


def test_options_do_not_shadow_what_has_a_key_of_its_own(tmp_path: Path, model_folder: Path) -> None:
    arguments = engine_arguments(make_engine_config(tmp_path).sampler, model_folder, trust_remote_code=False)
    assert not set(ENGINE_OPTIONS) & set(arguments)
    assert set(ENGINE_OPTIONS) <= set(SURFACE["LLM"]["keyword"])


def test_the_traps_of_the_defaults_are_avoided(tmp_path: Path, model_folder: Path) -> None:
    """max_input_len falls to 1024 and chunked prefill is off unless they are given."""
    arguments = engine_arguments(make_engine_config(tmp_path).sampler, model_folder, trust_remote_code=False)
    assert SURFACE["LLM"]["keyword"]["enable_chunked_prefill"] is False
    assert (arguments["max_input_len"], arguments["max_seq_len"]) == (512, 512)
    assert arguments["enable_chunked_prefill"]
    assert arguments["kv_cache_config"]["enable_block_reuse"]


@pytest.mark.parametrize(("function", "surface"), [("SamplingParams", "SamplingParams"), ("generate_async",) * 2])
def test_every_argument_of_every_call_exists(function: str, surface: str) -> None:
    (call,) = calls_of(function)
    named = {keyword.arg for keyword in call.keywords if keyword.arg}
    assert named <= set(SURFACE[surface])
    assert len(call.args) <= 1
    required = {name for name, default in SURFACE[surface].items() if default == "<required>"}
    assert len(call.args) >= len(required)


def test_every_name_that_the_worker_imports_or_reads_exists() -> None:
    tree = ast.parse(WORKER.read_text())
    imported = {
        (node.module, name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tensorrt_llm")
        for name in node.names
    }
    assert imported == {("tensorrt_llm", "LLM"), ("tensorrt_llm", "SamplingParams")} | {
        ("tensorrt_llm.llmapi", "CudaGraphConfig"),
        ("tensorrt_llm.llmapi", "KvCacheConfig"),
    }
    assert all(name in SURFACE["imports"][module] for module, name in imported)
    read = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert {name for variable, name in read if variable == "made"} <= set(SURFACE["CompletionOutput"])
    assert {name for variable, name in read if variable == "result"} <= set(SURFACE["RequestOutput"])
    assert {name for variable, name in read if variable == "llm"} <= set(SURFACE["LLM_methods"])


def test_the_double_refuses_what_the_library_refuses() -> None:
    script = (
        "from tensorrt_llm import LLM, SamplingParams\n"
        "for call in (lambda: LLM('m', quant_config=1), lambda: SamplingParams(logprobs_mode=1)):\n"
        "    try: call()\n"
        "    except (ValueError, TypeError) as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[1:] == [
        "LLM got invalid argument: quant_config",
        "SamplingParams.__init__() got an unexpected keyword argument 'logprobs_mode'",
    ]


# --- The worker and the sampler ---


def test_completions_come_in_order_whatever_engine_drew_them(tmp_path: Path, model_folder: Path, machine: Path) -> None:
    requests = make_requests(copies=6)
    completions = ask(make_engine_config(tmp_path), model_folder, requests)
    alone = ask(make_engine_config(tmp_path, num_engines=1), model_folder, requests)
    assert completions == alone
    assert {len(made.token_ids) for made in completions} > {10}
    for made in completions:
        assert (made.finish_reason == "stop") == (made.token_ids[-1] == 1)
    asked = list(read_record(machine, "prompt"))[: len(requests)]
    engines: dict[tuple[int, ...], set[str]] = {}
    for entry in asked:
        engines.setdefault(tuple(entry["prompt"]), set()).add(entry["engine"])
    assert all(len(of_prompt) == 1 for of_prompt in engines.values())
    assert {name for of_prompt in engines.values() for name in of_prompt} == {"0", "1"}
    assert sorted(entry["seed"] for entry in asked) == sorted(request.seed for request in requests)


def test_greedy_requests_are_greedy(tmp_path: Path, model_folder: Path) -> None:
    completions = ask(make_engine_config(tmp_path), model_folder, make_requests(temperature=0.0, copies=2))
    assert completions[::2] == completions[1::2]


def test_an_engine_is_no_part_of_the_job_and_has_its_own_gpu(tmp_path: Path, model_folder: Path, machine: Path) -> None:
    sampler = open_sampler(make_engine_config(tmp_path), model_folder)
    assert sampler.window == 8
    started = list(read_record(machine, "environment"))
    assert sorted(entry["environment"]["CUDA_VISIBLE_DEVICES"] for entry in started) == ["0", "1"]
    assert not any("SLURM_JOB_ID" in entry["environment"] for entry in started)
    assert all(entry["environment"]["TLLM_WORKER_USE_SINGLE_PROCESS"] == "1" for entry in started)
    assert len({os.getpgid(entry["pid"]) for entry in started} | {os.getpgid(0)}) == 3
    sampler.close()
    assert not any(is_alive(entry["pid"]) for entry in started)
    assert len(list(read_record(machine, "shutdown"))) == 2
    assert "a line that a library prints" in (tmp_path / "irpo" / "logs" / "engine_0.log").read_text()


def test_a_tensor_parallel_engine_takes_its_gpus_and_mpi(tmp_path: Path, model_folder: Path, machine: Path) -> None:
    ask(make_engine_config(tmp_path, tensor_parallel_size=2), model_folder, [])
    (started,) = read_record(machine, "environment")
    assert started["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "TLLM_WORKER_USE_SINGLE_PROCESS" not in started["environment"]


def test_the_window_bounds_what_an_engine_has(tmp_path: Path, model_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("DOUBLE_TOKEN_SECONDS", "0.001")
    sampler = open_sampler(make_engine_config(tmp_path, batch_size=3, num_engines=1), model_folder)
    process = sampler._engines[0].process  # type: ignore[attr-defined]
    seen = []
    send = process._send

    def note(message: dict[str, Any]) -> None:
        seen.append(process.num_pending)
        send(message)

    process._send = note
    sampler.generate(make_requests(copies=5))
    sampler.close()
    assert max(seen) == 3
    assert len(seen) == 25


@pytest.mark.parametrize(
    ("trouble", "failure"),
    [
        (REQUEST_ERROR, "RequestError: the batch manager said no"),
        (CANCELLED, "the engine ended it with 'cancelled' after 1 tokens"),
        (CRASH, "the engine died, 3 times while it had this request"),
    ],
)
def test_one_bad_request_costs_itself_alone(tmp_path: Path, model_folder: Path, trouble: int, failure: str) -> None:
    requests = make_requests(copies=6)
    config = make_engine_config(tmp_path, num_engines=1)
    expected = ask(config, model_folder, requests)
    completions = ask(config, model_folder, troubled(requests, 8, trouble))
    assert completions[8] == Completion.failed(failure)
    assert [c for n, c in enumerate(completions) if n != 8] == [c for n, c in enumerate(expected) if n != 8]


def test_an_engine_that_falls_silent_is_started_again(tmp_path: Path, model_folder: Path) -> None:
    requests = make_requests(copies=3)
    config = make_engine_config(tmp_path, num_engines=1, silence_timeout_seconds=1.5)
    completions = ask(config, model_folder, troubled(requests, 4, HANG))
    expected = ask(config, model_folder, requests)
    assert completions[4].failure is not None
    assert completions[4].failure.startswith("the engine answered nothing for ")
    assert [c for n, c in enumerate(completions) if n != 4] == [c for n, c in enumerate(expected) if n != 4]


def test_a_prompt_too_long_costs_itself_alone(tmp_path: Path, model_folder: Path) -> None:
    requests = make_requests(copies=2)
    long = [dataclasses.replace(requests[0], prompt_token_ids=[5] * 600), *requests[1:]]
    chunked = ask(make_engine_config(tmp_path, num_engines=1), model_folder, long)
    assert chunked[0] == Completion.failed("RequestError: prompt length 600 exceeds max_input_len 512")
    whole = make_engine_config(tmp_path, num_engines=1, max_num_tokens=500, enable_chunked_prefill=False)
    refused = ask(whole, model_folder, long)
    assert refused[0].failure is not None
    assert refused[0].failure.startswith("ValueError: The sum of prompt length (600)")
    assert refused[1:] == chunked[1:]


def test_endings_are_those_of_the_other_samplers(tmp_path: Path, model_folder: Path) -> None:
    requests = troubled(make_requests(copies=2), 2, CUT_STOP)
    completions = ask(make_engine_config(tmp_path, num_engines=1), model_folder, requests)
    assert completions[2].token_ids == [11, 12, 1]
    requests = troubled(make_requests(copies=1, max_new_tokens=60), 2, NO_REASON)
    completions = ask(make_engine_config(tmp_path, num_engines=1), model_folder, requests)
    assert completions[2].finish_reason == "stop"


def test_the_first_request_of_each_prompt_goes_ahead(tmp_path: Path, model_folder: Path, machine: Path) -> None:
    requests = make_requests(copies=3)
    ask(make_engine_config(tmp_path, num_engines=1, batch_size=1), model_folder, requests)
    prompts = [entry["prompt"] for entry in read_record(machine, "prompt")]
    first, second, third = requests[0], requests[3], requests[6]
    wanted = [first, second, first, first, third, second, second]
    assert prompts[:7] == [request.prompt_token_ids for request in wanted]


def test_an_engine_that_cannot_start_is_an_error_with_its_last_words(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOUBLE_FAILS_TO_START", "1")
    with pytest.raises(MachineError) as error:
        open_sampler(make_engine_config(tmp_path, num_engines=1), model_folder)
    log = tmp_path / "irpo" / "logs" / "engine_0.log"
    assert str(error.value).startswith(f"the engine ended before it was ready; its log {log} ends with:\n")
    assert "RuntimeError: CUDA out of memory\n" in str(error.value)


def test_engines_that_die_in_vain_are_given_up(tmp_path: Path, model_folder: Path) -> None:
    requests = [dataclasses.replace(request, prompt_token_ids=[5, CRASH]) for request in make_requests(copies=6)]
    with pytest.raises(MachineError, match=r"the engine died 5 times in a row without an answer\."):
        ask(make_engine_config(tmp_path, num_engines=1), model_folder, requests)


def test_unknown_options_are_refused_before_anything_starts(tmp_path: Path) -> None:
    config = make_engine_config(tmp_path, options={"moe_confg": {}, "model": "x"})
    config.sft.enabled = True
    first, second = check_relations(config)
    assert first == (
        "sampler.tensorrt_llm.options.moe_confg: no such option, or one with a key of its own. Did you mean moe_config?"
    )
    assert second.startswith(
        "sampler.tensorrt_llm.options.model: no such option, or one with a key of its own. Known: "
    )


def test_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [str(number) for number in range(8)]
    assert [list(share) for share in share_gpus(gpus, size=4, num_engines=None)] == [gpus[:4], gpus[4:]]
    assert [list(share) for share in share_gpus(gpus, size=2, num_engines=1)] == [gpus[:2]]
    with pytest.raises(
        ConfigError, match=r"num_engines: is 5, which takes 10 GPUs, but 8 are visible\. Set it to at most 4"
    ):
        share_gpus(gpus, size=2, num_engines=5)
    with pytest.raises(ConfigError, match="an engine takes 2 GPUs, but 0 are visible"):
        share_gpus([], size=2, num_engines=None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaa,MIG-bbb")
    assert list_gpus() == ["GPU-aaa", "MIG-bbb"]


SAMPLE = """
import sys
from pathlib import Path
from irpo_nemo.config_files import load_config
from irpo_nemo.sampling import open_sampler
from irpo_nemo.sampling.parts import sample_split
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import load_tokenizer

config, model, folder = load_config(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
sampler = open_sampler(config, model)
sample_split(lambda: sampler, load_tokenizer(model, trust_remote_code=False), load_task(config), config,
             iteration=0, split="train", folder=folder, model_hash="a" * 64)
"""


def test_a_sampler_closed_at_work_leaves_no_engine(
    tmp_path: Path, model_folder: Path, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOUBLE_TOKEN_SECONDS", "0.05")
    sampler = open_sampler(make_engine_config(tmp_path), model_folder)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            sampler.generate(make_requests(copies=20))
        except (MachineError, CancelledError) as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: len(list(read_record(machine, "prompt"))) >= 8)
    sampler.close()
    thread.join()
    assert len(errors) == 1
    engines = [entry["pid"] for entry in read_record(machine, "environment")]
    assert len(engines) == 2
    wait_until(lambda: not any(is_alive(pid) for pid in engines))


def test_sampling_that_is_terminated_leaves_no_engine_and_can_go_on(
    tmp_path: Path, model_folder: Path, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_engine_config(tmp_path, batch_size=2)
    config.sft.enabled = True
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    monkeypatch.setenv("DOUBLE_TOKEN_SECONDS", "0.02")
    monkeypatch.setenv("PYTHONPATH", f"{DOUBLE}:{Path(__file__).parents[2]}")
    process = subprocess.Popen([sys.executable, "-c", SAMPLE, str(path), str(model_folder), str(tmp_path / "parts")])
    wait_until(lambda: bool(list_parts(tmp_path / "parts")) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    process.wait()
    engines = [entry["pid"] for entry in read_record(machine, "environment")]
    assert len(engines) == 2
    wait_until(lambda: not any(is_alive(pid) for pid in engines))
    assert 0 < len(list_parts(tmp_path / "parts")) < 3

    monkeypatch.setenv("DOUBLE_TOKEN_SECONDS", "0")
    for folder in ("parts", "whole"):
        sampler = open_sampler(config, model_folder)
        sample_split(
            lambda sampler=sampler: sampler,  # type: ignore[misc]
            load_tokenizer(model_folder, trust_remote_code=False),
            load_task(config),
            config,
            iteration=0,
            split="train",
            folder=tmp_path / folder,
            model_hash="a" * 64,
        )
        sampler.close()
    assert list(read_parts(tmp_path / "parts", Candidate)) == list(read_parts(tmp_path / "whole", Candidate))


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
