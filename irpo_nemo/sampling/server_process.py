"""A server of M_t that lives as long as a stage: started, watched until it listens, and ended with all its children."""

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from irpo_nemo.config import ServerConfig
from irpo_nemo.errors import MachineError
from irpo_nemo.sampling.child_process import clean_environment, kill_group, through_bash

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 20.0
_LOG_LINES = 8


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
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"--- {shlex.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            through_bash(command),
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for_port(process, port, config, command, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _end(process)


def _wait_for_port(
    process: "subprocess.Popen[bytes]", port: int, config: ServerConfig, command: Sequence[str], log: Path
) -> None:
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


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the whole group to end, then make it."""
    kill_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_GRACE_SECONDS)
    kill_group(process.pid, signal.SIGKILL)
    process.wait()
