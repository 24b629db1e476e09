"""A client of several /v1/completions servers that stand in for each other. Knows HTTP, not prompts or problems.

What went wrong decides what happens next:

    refused            400, 413, 422               the request fails at once: it would fail again
    unwelcome          401, 403, 404               an error for the user: no request can succeed
    away               connection refused, 429,    the server rests, another takes over; costs the request nothing
                       502, 503, 504
    broken             500, connection dropped,    the request is asked for again, `max_attempts` times in all; late
                       damaged JSON, too slow      attempts go one by one, so that a request that kills servers stands
                                                   out from those that were beside it
"""

import asyncio
import json
import logging
import random
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from irpo_nemo.config import ServerConfig
from irpo_nemo.errors import ConfigError, MachineError

logger = logging.getLogger(__name__)

_REFUSED = (400, 413, 422)
_UNWELCOME = (401, 403, 404)
_AWAY = (429, 502, 503, 504)
_CONNECT_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 20.0
_ATTEMPTS_IN_COMPANY = 2
"""Attempts after these are made one at a time."""
_MOST_FAILURES_IN_A_ROW = 50
_EXCERPT_CHARACTERS = 300


class RequestFailed(Exception):  # noqa: N818 - a fact about one request, not a mistake of the program
    """This request has no answer; others may have one."""


class _Away(Exception):  # noqa: N818
    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _Broken(Exception):  # noqa: N818
    pass


@dataclass
class Server:
    """One base URL and how it is doing."""

    url: str
    in_flight: int = 0
    pauses: int = 0
    """Times in a row that it was away."""
    away_until: float = 0.0
    """On time.monotonic()'s clock."""


class ServerPool:
    """Open connections to some servers. All methods belong to one event loop."""

    def __init__(self, base_urls: list[str], *, config: ServerConfig, api_key: str | None, in_flight: int) -> None:
        self.servers = [Server(url.rstrip("/")) for url in base_urls]
        self._config = config
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=config.request_timeout_seconds, sock_connect=_CONNECT_SECONDS),
        )
        self._slots = asyncio.Semaphore(in_flight)
        self._one_by_one = asyncio.Semaphore(1)
        self._last_answer = time.monotonic()
        self._failures_in_a_row = 0

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def list_models(self, server: Server) -> list[dict[str, Any]]:
        """What `server` says it serves; waits until it answers.

        Raises:
            ConfigError: It is no such server.
            MachineError: It stays away.
        """
        answer = await self._insist(server, "GET", "/models", None)
        return list(answer.get("data", []))

    async def probe(self, server: Server, body: dict[str, Any]) -> dict[str, Any]:
        """Ask one server; waits until it answers.

        Raises:
            RequestFailed: It refuses such a request.
            ConfigError: It is no such server.
            MachineError: It stays away.
        """
        return await self._insist(server, "POST", "/completions", body)

    async def complete(self, body: dict[str, Any], homes: dict[str, Server], home: str) -> dict[str, Any]:
        """Ask for one completion; return the answer's only choice.

        Args:
            body: Of POST /completions.
            homes: The server that each problem is at home on, where its prompt is in the cache; kept up to date.
            home: The problem.

        Raises:
            RequestFailed: This request has no answer.
            ConfigError: The servers refuse all requests.
            MachineError: All servers stay away, or fail on everything.
        """
        async with self._slots:
            try:
                choice = await self._try_until_answered(body, homes, home)
            except RequestFailed as failure:
                self._count_failure(failure)
                raise
        self._failures_in_a_row = 0
        return choice

    async def _try_until_answered(self, body: dict[str, Any], homes: dict[str, Server], home: str) -> dict[str, Any]:
        attempts = 0
        asking_since = time.monotonic()
        while True:
            server = await self._choose(homes, home, asking_since)
            try:
                if attempts < _ATTEMPTS_IN_COMPANY:
                    return await self._ask_for_choice(server, body)
                async with self._one_by_one:
                    return await self._ask_for_choice(server, body)
            except _Away as away:
                self._check_patience(asking_since, self.servers)
                self._rest(server, away)
            except _Broken as broken:
                attempts += 1
                logger.debug("%s: attempt %d failed: %s", server.url, attempts, broken)
                self._check_patience(asking_since, self.servers, at_least=self._config.request_timeout_seconds)
                if attempts >= self._config.max_attempts:
                    raise RequestFailed(f"{attempts} attempts failed, the last with: {broken}") from broken
                await asyncio.sleep(_pause(attempts))

    async def _choose(self, homes: dict[str, Server], home: str, asking_since: float) -> Server:
        """The problem's server, or the one with the least to do when that is away; waits while all are."""
        while True:
            now = time.monotonic()
            present = [server for server in self.servers if server.away_until <= now]
            if homes.get(home) in present:
                return homes[home]
            if present:
                homes[home] = min(present, key=lambda server: server.in_flight)
                return homes[home]
            self._check_patience(asking_since, self.servers)
            await asyncio.sleep(max(0.01, min(server.away_until for server in self.servers) - now))

    def _check_patience(self, asking_since: float, away: list[Server], *, at_least: float = 0.0) -> None:
        """Give up when nothing at all was answered for too long: alone, no request would know that it asks in vain."""
        silence = time.monotonic() - max(asking_since, self._last_answer)
        if silence > max(self._config.patience_seconds, at_least):
            urls = ", ".join(server.url for server in away)
            raise MachineError(
                f"{urls}: no server has answered for {silence:.0f} s. Start one and run the same command again; what "
                f"is done is kept. To wait longer, set sampler.server.patience_seconds above "
                f"{self._config.patience_seconds:g}."
            )

    def _rest(self, server: Server, away: _Away) -> None:
        now = time.monotonic()
        if server.away_until > now:
            return  # another request has said so already
        server.pauses += 1
        pause = _pause(server.pauses)
        if away.retry_after is not None:
            pause = max(away.retry_after, _FIRST_PAUSE_SECONDS / 2) * random.uniform(1.0, 1.2)
        server.away_until = now + pause
        if server.pauses == 1:
            logger.info("%s: is away (%s); trying again", server.url, away)

    def _count_failure(self, failure: RequestFailed) -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _MOST_FAILURES_IN_A_ROW:
            raise MachineError(
                f"{self.servers[0].url}: the last {self._failures_in_a_row} completions all failed; the last one: "
                f"{failure}. Look at the server's log, then run the same command again; what is done is kept."
            ) from failure

    async def _ask_for_choice(self, server: Server, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._ask(server, "POST", "/completions", body)
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise _Broken(f"an answer without its one choice: {_excerpt(json.dumps(answer))}")
        return choices[0] | {"usage": answer.get("usage")}

    async def _insist(self, server: Server, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Ask one server until it answers."""
        since = time.monotonic()
        failures = 0
        while True:
            try:
                return await self._ask(server, method, path, body)
            except (_Away, _Broken) as error:
                failures += 1
                if isinstance(error, _Broken) and failures >= self._config.max_attempts:
                    raise MachineError(f"{server.url}{path}: {error}. Look at the server's log.") from error
                self._check_patience(since, [server])
                await asyncio.sleep(_pause(failures))

    async def _ask(self, server: Server, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """One HTTP exchange."""
        server.in_flight += 1
        try:
            async with self._session.request(method, server.url + path, json=body) as response:
                data = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _Away(str(error)) from error
        except asyncio.TimeoutError as error:
            raise _Broken(f"no answer within {self._config.request_timeout_seconds:g} s") from error
        except aiohttp.InvalidURL as error:
            raise ConfigError(
                f"sampler.server.base_urls: {server.url} is no URL; wanted http://host:port/v1"
            ) from error
        except aiohttp.ClientError as error:
            raise _Broken(f"the connection broke ({type(error).__name__}: {error})") from error
        finally:
            server.in_flight -= 1
        _check_status(server.url + path, response, data)
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise _Broken(f"an answer that is not JSON ({error})") from error
        if not isinstance(answer, dict):
            raise _Broken(f"an answer that is no object: {_excerpt(data.decode(errors='replace'))}")
        self._last_answer = time.monotonic()
        server.pauses = 0
        return answer


def _check_status(url: str, response: aiohttp.ClientResponse, data: bytes) -> None:
    status = response.status
    if status == 200:
        return
    reason = f"HTTP {status} {_excerpt(data.decode(errors='replace'))}".rstrip()
    if status in _UNWELCOME:
        raise ConfigError(
            f"{url}: {reason}. Check sampler.server.base_urls (they end in /v1), sampler.server.model, and the key in "
            f"the variable that sampler.server.api_key_variable names."
        )
    if status in _REFUSED:
        raise RequestFailed(reason)
    if status in _AWAY:
        raise _Away(reason, _retry_after(response))
    raise _Broken(reason)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), _LONGEST_PAUSE_SECONDS) if value.isdecimal() else None


def _pause(failures: int) -> float:
    """Seconds before the next try: doubling, up to a limit, anywhere in the upper half."""
    longest = min(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
    return random.uniform(longest / 2, longest)


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _EXCERPT_CHARACTERS else flat[:_EXCERPT_CHARACTERS] + "..."
