"""A server of M_t that lives as long as a stage: started, watched until it listens, started again when it dies, and
ended with all its children. Whether it generates is for its client to find out.
"""

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from irpo_nemo.config import ServerConfig
from irpo_nemo.errors import MachineError
from irpo_nemo.sampling.child_process import clean_environment, kill_group, through_bash

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 20.0
_LOG_LINES = 8
_MOST_RESTARTS = 5

Process: TypeAlias = "subprocess.Popen[bytes]"


@contextmanager
def start_server(config: ServerConfig, model_folder: Path, *, log: Path) -> Iterator[str]:
    """Start `sampler.server.command`; yield its base URL when its port is open.

    Raises:
        MachineError: It cannot be started, ends, or does not listen in time.
    """
    port = _free_port()
    command = [
        word.replace("{model}", str(model_folder.resolve())).replace("{port}", str(port)) for word in config.command
    ]
    process = _spawn(command, log)
    try:
        _wait_for_port(process, port, config, command, log)
    except BaseException:
        _end(process)
        raise
    keeper = _Keeper(process, lambda: _spawn(command, log))
    keeper.start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        keeper.stop()


class _Keeper(threading.Thread):
    """Starts a server that has died again; its client finds it on the same port and asks again for what was lost."""

    def __init__(self, process: Process, spawn: Callable[[], Process]) -> None:
        super().__init__(name="server_keeper", daemon=True)
        self._process = process
        self._spawn = spawn
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look now and then, until `stop`."""
        restarts = 0
        while restarts < _MOST_RESTARTS and not self._is_over.wait(_POLL_SECONDS):
            if (code := self._process.poll()) is not None:
                restarts += 1
                logger.warning("the server ended with %d; start %d of %d again", code, restarts, _MOST_RESTARTS)
                kill_group(self._process.pid, signal.SIGKILL)
                self._process = self._spawn()

    def stop(self) -> None:
        """End the server and all its children."""
        self._is_over.set()
        self.join()
        _end(self._process)


def _spawn(command: Sequence[str], log: Path) -> Process:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"--- {shlex.join(command)}\n".encode())
        output.flush()
        return subprocess.Popen(
            through_bash(command),
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _wait_for_port(process: Process, port: int, config: ServerConfig, command: Sequence[str], log: Path) -> None:
    started = time.monotonic()
    while not _is_open(port):
        if (code := process.poll()) is not None:
            raise MachineError(f"{shlex.join(command)}: ended with {code} before it served. {_last_words(log)}")
        if time.monotonic() - started > config.patience_seconds:
            raise MachineError(
                f"{shlex.join(command)}: does not listen on port {port} after {config.patience_seconds:g} s. "
                f"{_last_words(log)} To wait longer, raise sampler.server.patience_seconds."
            )
        time.sleep(_POLL_SECONDS)
    logger.info("server listens after %.0f s; its log is %s", time.monotonic() - started, log)


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"Its log {log} ends with:\n" + "\n".join(lines[-_LOG_LINES:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _end(process: Process) -> None:
    """Ask the whole group to end, then make it."""
    kill_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_GRACE_SECONDS)
    kill_group(process.pid, signal.SIGKILL)
    process.wait()
