"""Calls over a network: what may pass is tried again after growing waits, the rest is not.

What decides is the first thing known of an error or of those that caused it: an HTTP status, or the
class; an OSError of no special kind may pass. A server's waiting time (Retry-After, RateLimit) is
obeyed; one that requests more than PATIENCE_S ends the call, since people would rather know.

A file is fetched with no more bytes than it may have, and no slower than a floor. A server that
sends a byte now and then never runs into a timeout of silence, so what arrives is measured: less
than LEAST_BYTES_PER_S over WINDOW_S ends the transfer, from the first moment on, be it at
connecting, in the headers or in the file.
"""

import asyncio
import errno
import re
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from fsspec.asyn import sync
from fsspec.callbacks import Callback
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential, wait_random

from ....cache_schemas.errors import StorageError

TRIES = 5
WAIT = wait_exponential(multiplier=0.5, max=8) + wait_random(0, 0.5)
"""Seconds before the second, third, ... try."""
PATIENCE_S = 300.0

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAY_PASS_STATUS = {408, 425, 429}
_FINAL = (
    *(FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError),
    *(FileExistsError, ImportError, NotImplementedError, TypeError, ValueError),
)
# By the package's name and the classes' names: most of these packages need not be installed.
_FINAL_NAMES = {
    "httpx": {"UnsupportedProtocol"},
    "httpx2": {"UnsupportedProtocol"},
    "huggingface_hub": {"OfflineModeIsEnabled", "LocalTokenNotFoundError"},
}
_PASSING_NAMES = {
    "aiohttp": {"ClientConnectionError", "ClientPayloadError"},
    "azure": {"ServiceRequestError", "ServiceResponseError"},
    "botocore": {"ConnectionError", "HTTPClientError", "IncompleteReadError"},
    "google": {"TransportError"},
    "httpx": {"TransportError"},
    "httpx2": {"TransportError"},
    "urllib3": {"HTTPError"},
}
_RATE_LIMIT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
"""`"api";r=0;t=55`: nothing is left, and 55 seconds are to go."""

T = TypeVar("T")


def persistently(call: Callable[[], T]) -> T:
    """The result of `call`, which is tried again while what it raises may pass."""
    retrying = Retrying(retry=retry_if_exception(may_pass), wait=_wait, stop=_stop, reraise=True)
    result: T = retrying(call)
    return result


def may_pass(cause: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    # Whatever says that a connection failed: its certificate will be the same.
    if any(isinstance(error, ssl.SSLCertVerificationError) for error in _chain(cause)):
        return False
    verdicts = (verdict for verdict in map(_verdict, _chain(cause)) if verdict is not None)
    return next(verdicts, any(isinstance(error, OSError) for error in _chain(cause)))


def status_of(cause: BaseException) -> int | None:
    """The HTTP status of an error, or of what caused it, if there is one."""
    return next((s for s in map(_own_status, _chain(cause)) if s is not None), None)


def asked_wait_s(cause: BaseException) -> float | None:
    """The waiting time that a server requested, in seconds, if any."""
    waits = (wait_of(_own_status(error), _headers(error)) for error in _chain(cause))
    return next((wait_s for wait_s in waits if wait_s is not None), None)


def wait_of(status: int | None, headers: Mapping[Any, Any]) -> float | None:
    """The waiting time of one response, in seconds, if any."""
    values = {str(name).lower(): str(value) for name, value in headers.items()}
    limit = _RATE_LIMIT.search(values.get("ratelimit", ""))
    if status == 429 and limit:
        return float(limit.group(1))
    return _seconds(values["retry-after"]) if "retry-after" in values else None


def _wait(state: RetryCallState) -> float:
    grown: float = WAIT(state)
    return max(grown, asked_wait_s(_error(state)) or 0.0)


def _stop(state: RetryCallState) -> bool:
    wait_s = asked_wait_s(_error(state)) or 0.0
    return state.attempt_number >= TRIES or wait_s > PATIENCE_S


def _error(state: RetryCallState) -> BaseException:
    error: BaseException | None = state.outcome.exception() if state.outcome else None
    assert error is not None, "only a failed call is tried again"
    return error


def _chain(cause: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _verdict(error: BaseException) -> bool | None:
    """Whether an error is transient; None if unknown."""
    status = _own_status(error)
    if status is not None:
        return status in _MAY_PASS_STATUS or status >= 500
    if isinstance(error, _FINAL) or getattr(error, "errno", None) in DISK_FULL:
        return False
    if _is_one_of(error, _FINAL_NAMES):
        return False
    return True if _is_one_of(error, _PASSING_NAMES) else None


def _is_one_of(error: BaseException, names: Mapping[str, set[str]]) -> bool:
    return any(
        kind.__name__ in names.get(kind.__module__.partition(".")[0], ())
        for kind in type(error).__mro__
    )


def _own_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        found = iter([response.get("ResponseMetadata", {}).get("HTTPStatusCode")])
    else:
        names = ("status", "status_code", "code")
        found = (getattr(holder, name, None) for holder in (error, response) for name in names)
    return next((s for s in found if isinstance(s, int) and 300 <= s < 600), None)


def _headers(error: BaseException) -> Mapping[Any, Any]:
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        found = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    else:
        found = getattr(response, "headers", None) or getattr(error, "headers", None)
    return found if isinstance(found, Mapping) else {}


def _seconds(text: str) -> float | None:
    """Seconds from now on of a Retry-After: a number of them, or a date (RFC 9110, 10.2.3)."""
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


LEAST_BYTES_PER_S = 1024
WINDOW_S = 60.0

_TELLS_EARLY = {
    "http": {},
    "https": {},
    "s3": {"max_concurrency": 1},
    "s3a": {"max_concurrency": 1},
}
"""Protocols whose file systems count bytes as they arrive, and the options with which they do."""


class TooLargeError(StorageError):
    """A file of more bytes than it may have."""


class TooSlowError(ConnectionError):
    """A transfer below the floor; the next try may find a faster server."""


class Arriving(Callback):  # type: ignore[misc]
    """Counts the bytes of one try of a download, and stops it once they are more than `limit`."""

    def __init__(self, limit: int, where: str) -> None:
        super().__init__()
        self._limit, self._where = limit, where

    def call(self, hook_name: str | None = None, **_: Any) -> None:
        """Raises TooLargeError."""
        if self.value > self._limit:
            raise TooLargeError(f"{self._where}: has more than {self._limit} bytes")


def download(files: Any, path: str, target: str, limit: int, where: str) -> None:
    """Fetch the file at `path` of the file system `files`; `where` is it for messages.

    No more than a little above `limit` bytes are ever taken. Raises TooLargeError, TooSlowError,
    or whatever the file system does."""
    arriving = Arriving(limit, where)
    protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
    options = _TELLS_EARLY.get(protocol)
    if options is None or not files.async_impl:
        files.get_file(path, target, callback=arriving)
        return
    sync(files.loop, _above_the_floor, files, path, target, arriving, options)


async def _above_the_floor(
    files: Any, path: str, target: str, arriving: Arriving, options: dict[str, Any]
) -> None:
    transfer: Coroutine[Any, Any, None] = files._get_file(
        path, target, callback=arriving, **options
    )
    task, before = asyncio.ensure_future(transfer), 0
    try:
        while not (await asyncio.wait({task}, timeout=WINDOW_S))[0]:
            if arriving.value - before < LEAST_BYTES_PER_S * WINDOW_S:
                raise TooSlowError(
                    f"{arriving.value - before} bytes came in {WINDOW_S:g} s, less than "
                    f"{LEAST_BYTES_PER_S} a second"
                )
            before = arriving.value
        task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})  # it has closed the file before the next try opens it
