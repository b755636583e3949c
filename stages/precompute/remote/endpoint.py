"""One server's HTTP: a request with a deadline, and what kind of failure a failure is.

Failures are of four kinds. `BusyError` and `FailingError` may pass: the same request is sent again
later. `TextRefusedError` is about the texts of this request, and no other. Everything else is an
ArmadaError, and ends the run. No header, no key and no password is in any message.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import httpx

from ....cache_schemas.errors import JobError, RunError
from ...store.transfer.retries import may_pass, wait_of
from .error_replies import read_error

MOST_REPLY_BYTES = 2**28
POOL = 8
"""Connections of one client."""

_SLOWEST_BYTES_A_SECOND = 100_000
_BUSY = {429, 503, 529}


class FailureError(Exception):
    """A request that failed and may be sent again; `wait_s`: as the server says."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class BusyError(FailureError):
    """Too many requests for this server, for now."""


class FailingError(FailureError):
    """The server, or the way to it, does not work, for now."""


class TextRefusedError(Exception):
    """The server answers no request with this text."""


@dataclass(frozen=True, slots=True)
class Received:
    """A reply: its bytes, and the JSON document that they are."""

    body: bytes
    document: Any


class Endpoint:
    """A server under a base URL, such as `http://localhost:8000/v1`; belongs to one event loop."""

    def __init__(self, base_url: str, key_variable: str, deadline_s: float) -> None:
        """`base_url`: as `check_base_url` gives it; `key_variable`: the environment variable that
        has the key, if one is needed."""
        self._base = base_url
        self.host = urlsplit(self._base).netloc
        self._key_variable, self._deadline_s = key_variable, deadline_s
        self._key = key = os.environ.get(key_variable, "").strip()
        self._settings: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "http2": find_spec("h2") is not None,
            "timeout": httpx.Timeout(None, connect=min(30.0, deadline_s)),
            "limits": httpx.Limits(max_keepalive_connections=POOL),
        }
        self._clients: list[httpx.AsyncClient] = []
        self._free: list[httpx.AsyncClient] = []
        """A client for each request that it has room for; the last used is used next."""

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()

    async def post(self, path: str, body: Mapping[str, Any]) -> Received:
        """The server's reply to a document. Raises BusyError, FailingError or TextRefusedError;
        RunError or JobError for what does not pass. So do all below."""
        return await self._request("POST", path, json=body)

    async def get(self, path: str) -> Received:
        """A document of the server."""
        return await self._request("GET", path)

    async def upload(self, path: str, content: bytes, purpose: str) -> Received:
        """The server's reply to a file of JSON lines."""
        files = {"file": ("requests.jsonl", content, "application/jsonl")}
        deadline_s = self._deadline_s + len(content) / _SLOWEST_BYTES_A_SECOND
        return await self._request("POST", path, deadline_s, data={"purpose": purpose}, files=files)

    async def lines(self, path: str) -> AsyncIterator[bytes]:
        """The lines of a file, which may be large; each within the deadline."""
        client = self._client()
        try:
            with self._failing():
                async with client.stream("GET", self._base + path) as response:
                    if response.status_code != 200:
                        body = await response.aread()
                        raise self._failure(response.status_code, response.headers, body, path)
                    lines = response.aiter_lines()
                    while True:
                        async with asyncio.timeout(self._deadline_s):
                            line = await anext(lines, None)
                        if line is None:
                            return
                        if line:
                            yield line.encode()
        finally:
            self._free.append(client)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What goes wrong on the way, as failures of ours."""
        try:
            yield
        except TimeoutError as cause:
            raise FailingError(f"no reply within timeout={self._deadline_s:g} seconds") from cause
        except httpx.HTTPError as cause:
            if not may_pass(cause):
                raise RunError(f"{self.host}: {type(cause).__name__}: {cause}") from cause
            raise FailingError(
                f"{type(cause).__name__}: {cause}" if str(cause) else "broken"
            ) from cause

    async def _request(
        self, method: str, path: str, deadline_s: float | None = None, **content: Any
    ) -> Received:
        with self._failing():
            # Of the whole request: a reply that drips in never runs into a timeout of silence.
            async with asyncio.timeout(deadline_s or self._deadline_s):
                status, headers, received = await self._send(method, path, content)
        if status != 200:
            raise self._failure(status, headers, received, path)
        try:
            return Received(received, json.loads(received))
        except (ValueError, RecursionError) as cause:
            raise FailingError(f"the reply is no JSON ({len(received)} bytes)") from cause

    async def _send(
        self, method: str, path: str, content: Mapping[str, Any]
    ) -> tuple[int, httpx.Headers, bytes]:
        client = self._client()
        try:
            async with client.stream(method, self._base + path, **content) as response:
                parts, size = [], 0
                async for part in response.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > MOST_REPLY_BYTES:
                        raise RunError(f"{self.host}: a reply exceeds {MOST_REPLY_BYTES} bytes")
                return response.status_code, response.headers, b"".join(parts)
        finally:
            self._free.append(client)

    def _client(self) -> httpx.AsyncClient:
        """A client with room for a request. Of few connections each: what a pool does for a request
        grows with all that it has."""
        if not self._free:
            if not self._clients:
                self._settings["verify"] = httpx.create_ssl_context()
            self._clients.append(httpx.AsyncClient(**self._settings))
            self._free = [self._clients[-1]] * POOL
        return self._free.pop()

    def _failure(
        self, status: int, headers: httpx.Headers, received: bytes, path: str
    ) -> Exception:
        found = read_error(status, received, [self._key] if self._key else [])
        said = f"{status}: {found.message}"
        if found.outcome == "text":
            return TextRefusedError(said)
        if found.outcome == "again":
            failure = BusyError if status in _BUSY else FailingError
            return failure(said, wait_of(status, headers))
        if status in (401, 403):
            key = "the key in" if self._key else "no key is in"
            return JobError(
                f"base_url: {self.host} answers {said}; {key} the environment variable "
                f"{self._key_variable}: set it to one that the server takes"
            )
        return RunError(f"{self.host}{path}: {said}")
