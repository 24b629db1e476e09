import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.artifacts import read_parts
from irpo_nemo.config import IRPOConfig, ServerConfig
from irpo_nemo.errors import IRPOError, MachineError
from irpo_nemo.records import Candidate
from irpo_nemo.sampling import Completion, SamplingRequest, open_sampler
from irpo_nemo.sampling.part_statistics import read_statistics
from irpo_nemo.sampling.parts import sample_split
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import load_tokenizer
from tests.sampling import http_server
from tests.sampling.conftest import make_config
from tests.sampling.http_server import CompletionServer
from tests.sampling.test_engine_parts import is_alive
from tests.sampling.test_transformers import generate as generate_with_transformers
from tests.sampling.test_transformers import make_requests

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def running(model_folder: Path) -> Iterator[CompletionServer]:
    server = CompletionServer(model_folder).start()
    yield server
    server.stop()


@pytest.fixture
def server(running: CompletionServer) -> Iterator[CompletionServer]:
    """A server that forgets its faults after each test."""
    original = running.fault_of
    yield running
    running.kind, running.takes_ids, running.faults, running.fault_of = "vllm", True, [], original
    running.model_name = str(running.folder)
    running.bodies.clear()


def make_server_config(*urls: str, **options: Any) -> IRPOConfig:
    config = make_config(batch_size=4)
    config.num_iterations = 1
    config.sampler.name = "openai_server"
    config.sampler.server = ServerConfig(base_urls=list(urls), **{"patience_seconds": 5.0, **options})
    return config


def ask(config: IRPOConfig, folder: Path, requests: list[SamplingRequest]) -> list[Completion]:
    sampler = open_sampler(config, folder)
    try:
        return sampler.generate(requests)
    finally:
        sampler.close()


def greedy_requests() -> list[SamplingRequest]:
    return make_requests(temperature=0.0, copies=2, max_new_tokens=8)


def expect_greedy(folder: Path, completions: list[Completion]) -> None:
    assert completions == generate_with_transformers(folder, greedy_requests())


@pytest.mark.parametrize("kind", ["vllm", "trtllm"])
def test_greedy_completions_equal_the_transformers_sampler(
    server: CompletionServer, model_folder: Path, kind: str
) -> None:
    server.kind = kind
    expect_greedy(model_folder, ask(make_server_config(server.url), model_folder, greedy_requests()))


def test_a_completion_ends_like_the_transformers_samplers(server: CompletionServer, model_folder: Path) -> None:
    """With end tokens that both kinds of server meet early: one keeps them, the other takes them off."""
    requests = make_requests(temperature=0.0, copies=1, max_new_tokens=40)
    free = generate_with_transformers(model_folder, requests)
    ends = sorted({free[0].token_ids[3], free[1].token_ids[6], 1})
    for kind in ("vllm", "trtllm"):
        server.kind = kind
        sampler = open_sampler(make_server_config(server.url), model_folder)
        sampler._stop_ids = ends  # type: ignore[attr-defined]
        completions = sampler.generate(requests)
        sampler.close()
        for completion, whole in zip(completions, free, strict=True):
            first = next((place for place, token in enumerate(whole.token_ids) if token in ends), None)
            # the server that takes a stop token off does not say which it was: it counts as the end-of-sequence token
            expected = whole.token_ids[: None if first is None else first + (kind == "vllm")]
            assert completion.token_ids[: len(expected)] == expected
            assert completion.finish_reason == ("length" if first is None else "stop")
            assert completion.finish_reason == "length" or completion.token_ids[-1] in ends


def test_each_request_is_sent_once_with_its_own_seed(server: CompletionServer, model_folder: Path) -> None:
    requests = make_requests(copies=4)
    completions = ask(make_server_config(server.url), model_folder, requests)
    sent = [body for body in server.bodies if body["max_tokens"] > 1]  # without the probe
    assert len(sent) == len(requests)
    assert sorted(body["seed"] for body in sent) == sorted(request.seed for request in requests)
    assert all(body["n"] == 1 and isinstance(body["prompt"], list) for body in sent)
    assert len({tuple(completion.token_ids) for completion in completions}) == len(requests)


def test_every_kind_of_failure_costs_time_and_no_completion(server: CompletionServer, model_folder: Path) -> None:
    sampler = open_sampler(make_server_config(server.url, request_timeout_seconds=3.0), model_folder)
    faults = [
        http_server.status(429, headers=[("Retry-After", "0")]),
        http_server.status(500, "out of luck"),
        http_server.drop,
        http_server.truncate,
        http_server.break_off,
        http_server.hang,
        http_server.two_choices,
        http_server.status(503),
        None,
        None,
        http_server.status(429),
    ]
    server.faults = list(faults)
    completions = sampler.generate(greedy_requests())
    sampler.close()
    assert server.faults == []
    expect_greedy(model_folder, completions)


def test_a_server_that_dies_and_comes_back_answers_all(server: CompletionServer, model_folder: Path) -> None:
    requests = make_requests(temperature=0.0, copies=8, max_new_tokens=8)
    sampler = open_sampler(make_server_config(server.url), model_folder)
    before = server.num_requests

    def interrupt() -> None:
        while server.num_requests < before + 10:
            time.sleep(0.001)
        server.stop()
        time.sleep(0.5)
        server.start()

    thread = threading.Thread(target=interrupt)
    thread.start()
    completions = sampler.generate(requests)
    thread.join()
    sampler.close()
    assert completions == generate_with_transformers(model_folder, requests)


def test_a_second_server_takes_over(server: CompletionServer, model_folder: Path) -> None:
    second = CompletionServer(model_folder).start()
    requests = make_requests(temperature=0.0, copies=6, max_new_tokens=8)
    sampler = open_sampler(make_server_config(server.url, second.url), model_folder)
    assert sampler.window == 8

    def kill() -> None:
        while second.num_requests < 5:
            time.sleep(0.001)
        second.stop()

    thread = threading.Thread(target=kill)
    thread.start()
    completions = sampler.generate(requests)
    thread.join()
    sampler.close()
    assert completions == generate_with_transformers(model_folder, requests)


def test_candidates_of_a_problem_stay_on_one_server(server: CompletionServer, model_folder: Path) -> None:
    second = CompletionServer(model_folder).start()
    ask(make_server_config(server.url, second.url), model_folder, greedy_requests())
    second.stop()
    prompts = [{tuple(body["prompt"]) for body in one.bodies if body["max_tokens"] > 1} for one in (server, second)]
    assert not prompts[0] & prompts[1]
    assert all(prompts)


def test_a_refused_request_costs_itself_alone(server: CompletionServer, model_folder: Path) -> None:
    requests = greedy_requests()
    long = tuple(requests[4].prompt_token_ids)
    server.fault_of = lambda body: http_server.status(400, "too long") if tuple(body["prompt"]) == long else None
    completions = ask(make_server_config(server.url), model_folder, requests)
    expected = generate_with_transformers(model_folder, requests)
    for request, completion, whole in zip(requests, completions, expected, strict=True):
        if tuple(request.prompt_token_ids) == long:
            assert completion == Completion.failed("HTTP 400 too long")
        else:
            assert completion == whole


def test_a_request_that_kills_the_server_costs_itself_alone(server: CompletionServer, model_folder: Path) -> None:
    """Every try of it drops all connections, those of the innocent too."""
    requests = make_requests(temperature=0.0, copies=3, max_new_tokens=8)
    culprit = requests[7].seed
    sampler = open_sampler(make_server_config(server.url), model_folder)
    lock = threading.Lock()

    def die() -> None:
        with lock:
            server.stop()
            server.start()

    async def kill(request: Any) -> Any:
        threading.Thread(target=die).start()
        return await http_server.hang(request)

    server.fault_of = lambda body: kill if body["seed"] == culprit else None
    completions = sampler.generate(requests)
    with lock:
        sampler.close()
    expected = generate_with_transformers(model_folder, requests)
    assert completions[7].finish_reason == "failed"
    assert [c for n, c in enumerate(completions) if n != 7] == [c for n, c in enumerate(expected) if n != 7]


def test_servers_that_stay_away_are_given_up(server: CompletionServer, model_folder: Path) -> None:
    sampler = open_sampler(make_server_config(server.url, patience_seconds=0.3), model_folder)
    server.stop()
    with pytest.raises(MachineError) as error:
        sampler.generate(greedy_requests())
    server.start()
    sampler.close()
    assert str(error.value).startswith(f"{server.url}: no server has answered for ")
    assert str(error.value).endswith("To wait longer, set sampler.server.patience_seconds above 0.3.")


@pytest.mark.parametrize("fault", [http_server.hang, http_server.status(429, headers=[("Retry-After", "0")])])
def test_a_server_that_only_says_wait_or_nothing_is_given_up(
    server: CompletionServer, model_folder: Path, fault: Any
) -> None:
    config = make_server_config(server.url, patience_seconds=0.3, request_timeout_seconds=1.5)
    sampler = open_sampler(config, model_folder)
    server.fault_of = lambda body: fault  # noqa: ARG005
    with pytest.raises(MachineError, match=r"no server has answered for \d s\. Start one"):
        sampler.generate(greedy_requests())
    sampler.close()


def test_a_server_that_fails_on_everything_is_given_up(server: CompletionServer, model_folder: Path) -> None:
    sampler = open_sampler(make_server_config(server.url, max_attempts=1), model_folder)
    server.fault_of = lambda body: http_server.status(500, "no memory")  # noqa: ARG005
    with pytest.raises(MachineError) as error:
        sampler.generate(make_requests(copies=20))
    sampler.close()
    assert str(error.value) == (
        f"{server.url}: the last 50 completions all failed; the last one: 1 attempts failed, the last with: HTTP 500 "
        "no memory. Look at the server's log, then run the same command again; what is done is kept."
    )


def refuse(config: IRPOConfig, folder: Path) -> str:
    with pytest.raises(IRPOError) as error:
        open_sampler(config, folder)
    return str(error.value)


def test_a_server_of_another_model_is_refused(server: CompletionServer, model_folder: Path) -> None:
    server.model_name = "/models/m0"
    assert refuse(make_server_config(server.url), model_folder) == (
        f"{server.url}: serves /models/m0, but this iteration samples from {model_folder}. Start the server with that "
        "folder, or set sampler.server.command so that each iteration starts its own."
    )


def test_a_server_without_token_ids_needs_a_word(server: CompletionServer, model_folder: Path) -> None:
    server.kind = "plain"
    message = refuse(make_server_config(server.url), model_folder)
    assert message.startswith(f"{server.url}: gives no token ids (return_token_ids: the answer has none; detokenize: ")
    config = make_server_config(server.url, retokenize=True)
    for takes_ids in (True, False):
        server.takes_ids = takes_ids
        requests = [
            dataclasses.replace(request, prompt_token_ids=prompt)
            for request, prompt in zip(greedy_requests(), real_prompts(model_folder), strict=False)
        ]
        completions = ask(config, model_folder, requests)
        expected = generate_with_transformers(model_folder, requests)
        assert [completion.text for completion in completions] == [whole.text for whole in expected]


def real_prompts(folder: Path) -> list[list[int]]:
    """Prompts that survive decoding and encoding."""
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    task = load_task(make_config())
    return [tokenizer(task.prompt(problem)).input_ids for problem in task.train_problems()]


def test_an_address_without_a_server_is_named(model_folder: Path) -> None:
    message = refuse(make_server_config("http://127.0.0.1:9/v1", patience_seconds=0.2), model_folder)
    assert message.startswith("http://127.0.0.1:9/v1: no server has answered for ")


def test_a_wrong_path_or_key_is_an_error_at_once(server: CompletionServer, model_folder: Path) -> None:
    url = server.url.removesuffix("/v1")
    message = refuse(make_server_config(url), model_folder)
    assert message.startswith(f"{url}/models: HTTP 404 ")
    assert "they end in /v1" in message


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        (
            lambda server: server.base_urls.clear(),
            "sampler.server.base_urls: is empty; name servers (http://host:8000/v1), or set",
        ),
        (
            lambda server: server.command.append("serve"),
            "sampler.server.command: is serve, but must hold {model} and {port}",
        ),
        (
            lambda server: (server.base_urls.append("u"), setattr(server, "model", "m0")),
            "sampler.server.model: is m0, but each iteration samples from another model;",
        ),
    ],
)
def test_mistakes_are_found_before_anything_starts(change: Callable[[ServerConfig], None], mistake: str) -> None:
    from irpo_nemo.config_checks import check_relations

    config = make_server_config()
    config.sft.enabled = True
    change(config.sampler.server)
    (found,) = check_relations(config)
    assert found.startswith(mistake)


def test_parts_from_a_server_are_whole(server: CompletionServer, model_folder: Path, tmp_path: Path) -> None:
    """Several parts at once from one sampler."""
    config = make_server_config(server.url)
    sampler = open_sampler(config, model_folder)
    server.faults = [http_server.status(500), http_server.drop, http_server.truncate]
    counts = sample_split(
        lambda: sampler,
        load_tokenizer(model_folder, trust_remote_code=False),
        load_task(config),
        config,
        iteration=0,
        split="train",
        folder=tmp_path,
        model_hash="a" * 64,
        statistics=tmp_path / "statistics",
    )
    sampler.close()
    ids = [made.candidate_id for made in read_parts(tmp_path, Candidate)]
    problems = [problem.problem_id for problem in load_task(config).train_problems()]
    assert ids == [f"{p}/sample/{i}" for p in problems for i in range(3)]
    assert (counts.completions, counts.failed) == (30, 0)
    assert len(read_statistics(tmp_path / "statistics", tmp_path)) == 3


def make_command(folder: Path) -> IRPOConfig:
    config = make_server_config(patience_seconds=60.0)
    config.sampler.server.command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import runpy; "
        "sys.argv = ['', *sys.argv[1:]]; runpy.run_module('tests.sampling.http_server', run_name='__main__')",
        "{model}",
        "{port}",
    ]
    config.run_root = str(folder)
    return config


def test_a_started_server_serves_and_ends_with_the_sampler(model_folder: Path, tmp_path: Path) -> None:
    config = make_command(tmp_path)
    before = set(children_of(os.getpid()))  # other tests' helpers live on
    sampler = open_sampler(config, model_folder)
    expect_greedy(model_folder, sampler.generate(greedy_requests()))
    log = config.run_folder / "logs" / "server.log"
    assert '{"listening": ' in log.read_text()
    (server,) = set(children_of(os.getpid())) - before
    os.killpg(server, signal.SIGKILL)
    expect_greedy(model_folder, sampler.generate(greedy_requests()))
    assert log.read_text().count('{"listening": ') == 2
    sampler.close()
    assert set(children_of(os.getpid())) <= before


def test_a_server_that_listens_but_cannot_generate_is_refused(server: CompletionServer, model_folder: Path) -> None:
    server.fault_of = lambda body: http_server.status(500, "CUDA error")  # noqa: ARG005
    message = refuse(make_server_config(server.url, max_attempts=2), model_folder)
    assert message == f"{server.url}/completions: HTTP 500 CUDA error. Look at the server's log."


WITH_A_CHILD = """
import signal, subprocess, sys, time, http.server
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
print("child", subprocess.Popen([sys.executable, "-c", stubborn]).pid, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), http.server.BaseHTTPRequestHandler).serve_forever()
"""


def test_a_started_server_that_is_refused_ends_with_all_its_children(model_folder: Path, tmp_path: Path) -> None:
    config = make_command(tmp_path)
    config.sampler.server.command = [sys.executable, "-c", WITH_A_CHILD, "{model}", "{port}"]
    config.sampler.server.max_attempts = 1
    assert "/models: HTTP 501" in refuse(config, model_folder)
    (line,) = [line for line in (tmp_path / "irpo/logs/server.log").read_text().splitlines() if "child" in line[:5]]
    child = int(line.split()[1])
    deadline = time.monotonic() + 20
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(model_folder: Path, tmp_path: Path) -> None:
    config = make_command(tmp_path)
    config.sampler.server.command = [sys.executable, "-c", "import sys; sys.exit('no GPU here')", "{model}", "{port}"]
    message = refuse(config, model_folder)
    assert "ended with 1 before it served" in message
    assert message.endswith("no GPU here")


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`, those that have ended aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
