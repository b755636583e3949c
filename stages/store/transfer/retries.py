"""Calls over a network: what may pass is tried again after growing waits, the rest is not."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

WAITS_S = (0.5, 1.0, 2.0, 4.0)
"""Before the second, third, ... try."""

_FINAL = (
    *(FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError),
    *(FileExistsError, ImportError, NotImplementedError, TypeError, ValueError),
)
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAY_PASS_STATUS = {408, 425, 429}
# What libraries below fsspec raise that is no OSError. botocore is not among them: s3fs has tried
# again by itself before such an error comes up.
_LIBRARIES = {"aiohttp", "requests", "urllib3", "httpx", "google", "azure"}

T = TypeVar("T")


def persistently(call: Callable[[], T]) -> T:
    """The result of `call`, which is tried again while what it raises may pass."""
    for wait in WAITS_S:
        try:
            return call()
        except Exception as cause:
            if not may_pass(cause):
                raise
        time.sleep(wait)
    return call()


def may_pass(cause: Exception) -> bool:
    """Whether the same call may succeed a little later."""
    status = status_of(cause)
    if status is not None and 400 <= status < 500:
        return status in _MAY_PASS_STATUS
    if isinstance(cause, _FINAL) or getattr(cause, "errno", None) in DISK_FULL:
        return False
    return isinstance(cause, OSError) or type(cause).__module__.partition(".")[0] in _LIBRARIES


def status_of(cause: Exception) -> int | None:
    """The HTTP status of an error, if it has one."""
    status = getattr(cause, "status", None)
    return status if isinstance(status, int) else None
