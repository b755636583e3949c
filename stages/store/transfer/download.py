"""One file from a file system that fsspec opens: no more bytes than it may have, no slower than a
floor.

A server that sends a byte now and then never runs into a timeout of silence, so what arrives is
measured: less than LEAST_BYTES_PER_S over WINDOW_S ends the transfer, from the first moment on, be
it at connecting, in the headers or in the file.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from fsspec.asyn import sync
from fsspec.callbacks import Callback

from ....cache_schemas.errors import StorageError

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
