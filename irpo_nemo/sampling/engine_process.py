"""One engine as its owner sees it: a process group that answers requests, may die or fall silent, and can be started
again.

Owner and engine speak in lines of JSON over a socket: the owner's order and the engine's {"ready": {...}}, then
requests and answers that share an id, in any order (`engine/worker.py`, `transformers_worker.py`). Knows no sampler and
no records.
"""

import asyncio
import contextlib
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irpo_nemo.errors import MachineError
from irpo_nemo.sampling.child_process import clean_environment, kill_group, through_bash

logger = logging.getLogger(__name__)

_LONGEST_LINE = 1 << 26
_WATCH_SECONDS = 0.5
_GRACE_SECONDS = 20.0
_LOG_LINES = 12


class EngineLost(Exception):  # noqa: N818 - happens to an engine, is no mistake of the program
    """The engine died or fell silent while it had this request."""


class EngineProcess:
    """All methods belong to one event loop."""

    def __init__(
        self,
        command: Sequence[str],
        order: Mapping[str, Any],
        *,
        environment: Mapping[str, str],
        log: Path,
        start_timeout_seconds: float | None,
        silence_timeout_seconds: float,
    ) -> None:
        """Remember how to start.

        Args:
            command: Arguments for Python, to which the socket's descriptor is added.
            order: The worker's first line.
            environment: Added to the cleaned environment of this process.
            log: Gets everything that the engine prints.
            start_timeout_seconds: Until it must be ready; None for no limit.
            silence_timeout_seconds: Until an engine with work must have answered something.
        """
        self.answers = 0
        """Given since the last start."""
        self.log = log
        self._command = command
        self._order = order
        self._environment = environment
        self._start_timeout = start_timeout_seconds
        self._silence_timeout = silence_timeout_seconds
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 0
        self._last_sign = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_running(self) -> bool:
        return self._writer is not None

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    async def start(self) -> dict[str, Any]:
        """Start the process and wait until the engine is ready; return what it says of itself.

        Raises:
            MachineError: It ends or does not become ready in time.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(theirs.fileno())
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_LONGEST_LINE)
        self._send(self._order)
        try:
            line = await asyncio.wait_for(reader.readline(), self._start_timeout)
        except asyncio.TimeoutError:
            line = b"late"
        except BaseException:
            kill_group(self._process.pid, signal.SIGKILL)
            raise
        if not line.startswith(b"{"):
            how = f"was not ready after {self._start_timeout:g} s" if line else "ended before it was ready"
            await self.stop(grace_seconds=0.0)
            raise MachineError(
                f"the engine {how}; {_last_words(self.log)}\nMend what it says, then run the same command again."
            )
        self.answers = 0
        self._last_sign = time.monotonic()
        self._tasks = [asyncio.ensure_future(self._read(reader)), asyncio.ensure_future(self._watch())]
        return dict(json.loads(line)["ready"])

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            EngineLost: There will be none.
        """
        if not self.is_running:
            raise EngineLost("the engine is not running")
        if not self._pending:
            self._last_sign = time.monotonic()
        self._next_id += 1
        number = self._next_id
        self._pending[number] = future = asyncio.get_running_loop().create_future()
        try:
            self._send({"id": number, **request})
            return await future
        finally:
            self._pending.pop(number, None)

    async def stop(self, *, grace_seconds: float = _GRACE_SECONDS) -> bool:
        """Let the engine end by itself for a moment, then end its whole process group.

        Returns:
            Whether it has ended by itself, and well.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._lose("the engine was stopped")
        if self._process is not None:
            process, self._process = self._process, None
            return await asyncio.to_thread(_end, process, grace_seconds)
        return False

    def _spawn(self, descriptor: int) -> "subprocess.Popen[bytes]":
        command = through_bash([sys.executable, *self._command, str(descriptor)])
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            output.write(f"--- {shlex.join(command)}\n".encode())
            output.flush()
            return subprocess.Popen(
                command,
                env=clean_environment(os.environ) | dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(descriptor,),
            )

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._writer is not None, "sent to an engine that runs"
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                message = json.loads(line)
                self._last_sign = time.monotonic()
                self.answers += 1
                future = self._pending.get(message["id"])
                if future is not None and not future.done():
                    future.set_result(message)
        await self._give_up("the engine died")

    async def _watch(self) -> None:
        """End an engine that has work and says nothing."""
        while True:
            await asyncio.sleep(min(_WATCH_SECONDS, self._silence_timeout / 4))
            silence = time.monotonic() - self._last_sign
            if self._pending and silence > self._silence_timeout:
                await self._give_up(f"the engine answered nothing for {silence:.0f} s")
                return

    async def _give_up(self, reason: str) -> None:
        if self.is_running:
            logger.warning("%s with %d completions at work; its log is %s", reason, len(self._pending), self.log)
        self._lose(reason)
        await self.stop(grace_seconds=0.0)

    def _lose(self, reason: str) -> None:
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(EngineLost(reason))


def _end(process: "subprocess.Popen[bytes]", grace_seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace_seconds)
    ended_well = process.returncode == 0
    kill_group(process.pid, signal.SIGKILL)
    process.wait()
    return ended_well


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"its log {log} ends with:\n" + "\n".join(lines[-_LOG_LINES:])
