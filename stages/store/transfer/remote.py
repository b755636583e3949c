"""Locations that caches come from and go to: a local folder, or a folder at a URL that fsspec
opens.

In: names of files below the location, made from checked names. Out: local files, bytes, names; or
one line with what the location refused, or why nothing opens it. Passwords in URLs and values of
options are in no message and in no file.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.config import conf
from fsspec.core import split_protocol, url_to_fs

from ....cache_schemas.errors import ArmadaError, CacheError, DamagedCacheError, StorageError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.locations import shown_url
from ..files.atomic import storage_error
from ..files.plain_files import plain_size
from .retries import (
    DISK_FULL,
    PATIENCE_S,
    TooLargeError,
    asked_wait_s,
    download,
    persistently,
    status_of,
)

T = TypeVar("T")

_DENIED = (401, 403)
_LISTING_S = 600
"""Longest time of one listing."""


class NotThereError(StorageError):
    """A file that the location does not have."""


class RefusedError(CacheError):
    """Something the location does not let this user do."""


class LocalLocation:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = str(path)

    def where(self, name: str) -> str:
        """A file of the location, for messages."""
        return str(self.path / name)

    def download(self, name: str, target: Path, limit: int) -> None:
        """Copy a file of at most `limit` bytes; raises DamagedCacheError if it is not there."""
        source = self.path / name
        if plain_size(source, self.path) > limit:
            raise TooLargeError(f"{source}: has more than {limit} bytes")
        try:
            shutil.copyfile(source, target)
        except OSError as cause:
            raise storage_error(target, cause) from cause


class RemoteLocation:
    """A folder that fsspec opens; safe to use from several threads."""

    housekeeping: frozenset[str] = frozenset()
    """Names that may lie in a folder that still counts as empty."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Raises CacheError for a URL that nothing opens, or that needs a package."""
        url = url if url.endswith("://") else url.rstrip("/")
        self.shown = shown_url(url)
        self._options = ", ".join(options or ())
        self._secrets = sorted(_strings(options or {}), key=len, reverse=True)
        self._files, self._root = connect(url, self.shown, options or {})

    def require_writable(self) -> None:
        """Raises CacheError if nothing can be written there."""
        if self.shown.startswith(("http://", "https://")):
            raise CacheError(f"{self.shown}: cannot be pushed to over HTTP, only pulled from")

    def renew(self) -> None:
        """Forget what was listed before."""
        self._files.invalidate_cache()

    def is_new(self) -> bool:
        """Whether the location itself is yet to be made."""
        return False

    def where(self, name: str) -> str:
        """A file of the location, for messages."""
        return f"{self.shown}/{name}" if name else self.shown

    def download(self, name: str, target: Path, limit: int) -> None:
        """Fetch a file of at most `limit` bytes; no more than a little above is ever taken.

        Raises NotThereError, TooLargeError or another StorageError, RefusedError."""
        where = self.where(name)
        self._ask(name, lambda: download(self._files, self._at(name), str(target), limit, where))

    def read(self, name: str, limit: int) -> bytes | None:
        """A document; None if it is not there. Raises DamagedCacheError if it is too large."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "document"
            try:
                self.download(name, file, limit)
            except NotThereError:
                return None
            except TooLargeError as cause:
                raise DamagedCacheError(f"{cause}; it is not a document of a cache") from cause
            return file.read_bytes()

    def upload(self, source: Path, name: str) -> None:
        """Send a file, replacing what is there. Raises CacheError if there is no such bucket."""
        try:
            self._ask(name, lambda: self._files.put_file(str(source), self._at(name)))
        except NotThereError as cause:
            raise CacheError(f"{self.where(name)}: there is no such bucket or folder") from cause

    def write(self, name: str, data: bytes) -> None:
        """Write a document, replacing what is there."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "document.json"
            file.write_bytes(data)
            self.upload(file, name)

    def names(self, folder: str) -> list[str]:
        """Last parts of all names in a folder, sorted; none if there is no such folder."""
        self.renew()
        try:
            found = self._ask(
                folder,
                lambda: self._files.ls(self._at(folder), detail=False, **self._listing),
            )
        except NotThereError:
            return []
        return sorted({name.rstrip("/").rpartition("/")[2] for name in found})

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of all files below a folder, by their names from the location on."""
        self.renew()
        found = self._ask(
            folder, lambda: self._files.find(self._at(folder), detail=True, **self._listing)
        )
        start = len(self._root) + 1
        return {path[start:]: about["size"] for path, about in found.items()}

    @property
    def _listing(self) -> dict[str, Any]:
        return {"timeout": _LISTING_S} if self._files.async_impl else {}

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _ask(self, name: str, call: Callable[[], T]) -> T:
        try:
            return persistently(call)
        except ArmadaError:
            raise
        except Exception as cause:
            raise self._refusal(self.where(name), cause) from cause

    def _refusal(self, where: str, cause: Exception) -> ArmadaError:
        reason = self._reason(cause)
        if self._options and isinstance(cause, TypeError | AttributeError):
            return CacheError(
                f"{self.shown}: cannot be opened with the options {self._options} ({reason})"
            )
        if isinstance(cause, FileNotFoundError):
            if _bucket_is_missing(cause):
                return CacheError(f"{self.shown}: there is no such bucket; check its name")
            return NotThereError(f"{where}: is not there")
        if getattr(cause, "errno", None) in DISK_FULL:
            return StorageError(f"{where}: no space left: {reason}; free some space")
        denied = status_of(cause) in _DENIED or "Credential" in type(cause).__name__
        if denied or isinstance(cause, PermissionError):
            return RefusedError(f"{where}: access is refused ({reason}); check the credentials")
        return StorageError(f"{where}: cannot be reached ({reason}); {_when_again(cause)}")

    def _reason(self, cause: Exception) -> str:
        return self._cleaned(str(cause).partition("\n")[0]) or type(cause).__name__

    def _cleaned(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return shown_url(text)[:300]


def _bucket_is_missing(cause: BaseException) -> bool:
    """Whether an object store reports that the bucket does not exist (botocore's errors)."""
    response = getattr(cause.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, Mapping) else None
    return code == "NoSuchBucket"


def _when_again(cause: BaseException) -> str:
    wait_s = asked_wait_s(cause) or 0.0
    if wait_s > PATIENCE_S:
        return (
            f"the server asks for a pause of {wait_s / 60:.0f} minutes; run the same command again "
            "then"
        )
    return "run the same command again to continue"


Location = LocalLocation | RemoteLocation


def _strings(value: Any) -> Iterator[str]:
    """Possible secrets in the value of an option: all its strings except short ones."""
    if isinstance(value, str) and len(value) > 5:
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(part)


_HTTP = ("http", "https")
_CONNECT_S, _SILENCE_S = 30, 60


def connect(url: str, shown: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of a URL and the path in it; `shown` is the URL for messages.

    Raises CacheError for a URL that no driver opens."""
    if "?" in url or "#" in url:
        raise CacheError(f"{re.split('[?#]', shown)[0]}: a folder's URL must not contain ? or #")
    protocol = split_protocol(url)[0] or ""
    given = {"skip_instance_cache": True, **_timeouts(protocol), **options}
    if protocol in ("s3", "s3a"):
        require_extra(shown, "s3", "s3fs")
    try:
        files, root = url_to_fs(url, **given)
    except ImportError as cause:
        message = str(cause).partition("\n")[0]
        raise CacheError(f"{shown}: needs a package that is not installed: {message}") from cause
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
    # Options that are passed replace those of the environment (FSSPEC_HTTP), so they repeat them.
    given = [conf.get(name, {}).get("client_kwargs", {}) for name in _HTTP]
    return {"client_kwargs": {"timeout": timeout, **given[0], **given[1]}}


Advance = Callable[[int], None]
"""Called from several threads with the bytes of each shard that was transferred."""


def in_parallel(jobs: int, work: Callable[[T], object], items: Iterable[T]) -> None:
    """Call `work` for each item, `jobs` at a time, in their order as far as threads keep it.

    After an error nothing more is begun; what is under way ends first, then the error is raised."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
