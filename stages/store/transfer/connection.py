"""From a URL to an fsspec file system, or one line that says why there is none."""

import re
from collections.abc import Mapping
from typing import Any

import fsspec
from fsspec.config import conf
from fsspec.core import split_protocol, url_to_fs

from ....cache_schemas.errors import CacheError

_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Protocol -> extra of this package that brings its driver."""

_HTTP = ("http", "https")
_CONNECT_S, _SILENCE_S = 30, 60


def connect(url: str, shown: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of a URL and the path in it; `shown` is the URL for messages.

    Raises CacheError for a URL that no driver opens."""
    if "?" in url or "#" in url:
        raise CacheError(f"{re.split('[?#]', shown)[0]}: a folder's URL has no ? and no #")
    protocol = split_protocol(url)[0] or ""
    given = {"skip_instance_cache": True, **_timeouts(protocol), **options}
    try:
        files, root = url_to_fs(url, **given)
    except ImportError as cause:
        raise CacheError(f"{shown}: {_what_to_install(protocol, cause)}") from cause
    except (ValueError, TypeError, KeyError) as cause:
        if protocol not in fsspec.available_protocols():
            raise CacheError(f"{shown}: fsspec knows no protocol {protocol!r}") from cause
        raise CacheError(
            f"{shown}: cannot be opened with the options {', '.join(options) or '(none)'}"
        ) from cause
    return files, str(root).rstrip("/")


def _timeouts(protocol: str) -> dict[str, Any]:
    """A large file may take its time over HTTP, a server may not fall silent."""
    if protocol not in _HTTP:
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    # Options that are passed replace what the environment says (FSSPEC_HTTP), so they repeat it.
    given = [conf.get(name, {}).get("client_kwargs", {}) for name in _HTTP]
    return {"client_kwargs": {"timeout": timeout, **given[0], **given[1]}}


def _what_to_install(protocol: str, cause: ImportError) -> str:
    extra = _EXTRAS.get(protocol)
    if extra:
        return f"needs a package that is not installed; pip install 'armada-kd[{extra}]'"
    return f"needs a package that is not installed: {str(cause).partition(chr(10))[0]}"
