"""A folder of a repository on the Hub: read at one commit, written in commits of many files.

    hf://[datasets/ | spaces/ | models/]USER/NAME[@REVISION][/FOLDER]

In: names below the folder. Files are read over HTTP as from any file server, at the commit that was
newest when reading began, so that no push in between shows. Out: commits that name their parent, so
that none is made on top of what its author has not seen. The token is huggingface_hub's own
(HF_TOKEN, or the one of `hf auth login`), or the storage option `token`.
"""

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    logging,
    validate_repo_id,
)

from ....cache_schemas.errors import ArmadaError, CacheError, StorageError
from ....cache_schemas.locations import shown_url
from .remote import RefusedError, RemoteLocation
from .retries import status_of

T = TypeVar("T")

_URL = re.compile(
    r"hf://(?:(?P<kind>datasets|spaces|models)/)?(?P<name>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(?P<folder>/.*)?"
)
_OPTIONS = {"token", "endpoint"}
_SILENCE_S = 300.0
"""Longest silence of the Hub: it may work for minutes at a commit of many files."""


class NoRepositoryError(CacheError):
    """There is no such repository, or no such revision in it, for this user."""


class ConflictError(StorageError):
    """Somebody else has made a commit in between."""


class HubLocation(RemoteLocation):
    """A folder of a repository on the Hub; safe to use from several threads."""

    housekeeping = frozenset(
        {".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "teachers"}
    )

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """Raises CacheError for a URL that names no repository."""
        options = options or {}
        shown = shown_url(url.rstrip("/"))
        match = _URL.fullmatch(url.rstrip("/"))
        if match is None or match["name"].partition("/")[0] in ("datasets", "spaces", "models"):
            raise CacheError(
                f"{shown}: names no repository; write hf://datasets/USER/NAME, optionally with "
                "@REVISION and /FOLDER"
            )
        unknown = sorted(options.keys() - _OPTIONS)
        if unknown:
            raise CacheError(f"{shown}: cannot be opened with the options {', '.join(unknown)}")
        self.repository: str = match["name"]
        self.kind = (match["kind"] or "models").removesuffix("s")
        self._revision = unquote(match["revision"]) if match["revision"] else None
        self._folder = (match["folder"] or "").strip("/")
        _require_valid(self.repository, shown)
        self._api = HfApi(token=options.get("token"), endpoint=options.get("endpoint"))
        headers = build_hf_headers(token=options.get("token"), library_name="armada")
        super().__init__(self._api.endpoint, {"headers": headers})
        self.shown = shown
        self._token = headers.get("authorization", "").removeprefix("Bearer ")
        self._secrets += [self._token] if self._token else []
        self._changing = threading.Lock()
        self._commit: str | None = None
        self._sizes: dict[str, int] | None = None

    def require_writable(self) -> None:
        """Raises CacheError if there is no token to write with."""
        if not self._token:
            raise CacheError(
                f"{self.shown}: needs a token that may write; run `hf auth login`, or set HF_TOKEN"
            )

    def renew(self) -> None:
        """Look at the newest commit from now on."""
        with self._changing:
            self._commit = self._sizes = None

    def is_new(self) -> bool:
        """Whether there is no such repository or branch yet. Raises RefusedError, StorageError."""
        try:
            self._ask("", self._head)
        except NoRepositoryError:
            return True
        return False

    def create(self, public: bool) -> None:
        """Make the repository, and the branch if one is named, unless they are there."""
        if self.kind == "space":
            raise CacheError(f"{self.shown}: there is no such Space; make it on the Hub first")
        about: dict[str, Any] = {"repo_type": self.kind, "exist_ok": True}
        self._call(lambda: self._api.create_repo(self.repository, private=not public, **about))
        if self._revision:
            branch = self._revision
            self._call(lambda: self._api.create_branch(self.repository, branch=branch, **about))
        self.renew()

    def commit(self, files: Mapping[str, Path | bytes], message: str, threads: int) -> None:
        """Write files by their names in one commit on top of the one that is being looked at.

        What the repository holds already is not sent again. Raises ConflictError if another commit
        has come in between, RefusedError, StorageError."""
        start = f"{self._folder}/" if self._folder else ""
        added = [CommitOperationAdd(start + name, content) for name, content in files.items()]
        made = self._call(
            lambda: self._api.create_commit(
                self.repository,
                added,
                commit_message=message,
                repo_type=self.kind,
                revision=self._revision,
                parent_commit=self._head(),
                num_threads=threads,
            )
        )
        with self._changing:
            self._commit, self._sizes = made.oid, None

    def names(self, folder: str) -> list[str]:
        """Last parts of all names in a folder, sorted; none if there is no such folder."""
        start = f"{folder.rstrip('/')}/" if folder else ""
        below = (name.removeprefix(start) for name in self._tree() if name.startswith(start))
        return sorted({name.partition("/")[0] for name in below})

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of all files below a folder, by their names from the location on."""
        start = f"{folder.rstrip('/')}/" if folder else ""
        return {name: size for name, size in self._tree().items() if name.startswith(start)}

    def _tree(self) -> dict[str, int]:
        if self._sizes is None:
            self._sizes = self._call(self._list)
        return self._sizes

    def _list(self) -> dict[str, int]:
        start = len(self._folder) + 1 if self._folder else 0
        found = self._api.list_repo_tree(
            self.repository,
            self._folder or None,
            recursive=True,
            revision=self._head(),
            repo_type=self.kind,
        )
        try:
            return {entry.path[start:]: entry.size for entry in found if hasattr(entry, "size")}
        except EntryNotFoundError:
            return {}

    def _head(self) -> str:
        with self._changing:
            if self._commit is None:
                _end_silence()
                info = self._api.repo_info(
                    self.repository, repo_type=self.kind, revision=self._revision
                )
                self._commit = str(info.sha)
            return self._commit

    def _at(self, name: str) -> str:
        kind = "" if self.kind == "model" else f"{self.kind}s/"
        path = quote(f"{self._folder}/{name}".strip("/"))
        return f"{self._api.endpoint}/{kind}{self.repository}/resolve/{self._head()}/{path}"

    def _call(self, call: Callable[[], T]) -> T:
        """Result of a call of huggingface_hub, with retries of transient errors."""
        _end_silence()
        with _quietly():
            return self._ask("", call)

    def _refusal(self, where: str, cause: Exception) -> ArmadaError:
        status = status_of(cause)
        reason = self._reason(cause)
        if isinstance(cause, GatedRepoError):
            return RefusedError(f"{self.shown}: is gated; ask for access on its page on the Hub")
        if isinstance(cause, RevisionNotFoundError):
            return NoRepositoryError(f"{self.shown}: has no revision {self._revision or 'main'}")
        if isinstance(cause, RepositoryNotFoundError):
            return NoRepositoryError(f"{self.shown}: {self._nobody_there()}")
        if status in (409, 412):
            return ConflictError(f"{self.shown}: others push at the same time ({reason})")
        if status == 401:
            wrong = "the Hub does not accept the token" if self._token else self._nobody_there()
            return RefusedError(f"{self.shown}: {wrong} ({reason})")
        if status in (400, 402, 403, 413, 422) or isinstance(cause, ValueError):
            return RefusedError(f"{self.shown}: the Hub refuses this ({reason})")
        return super()._refusal(where, cause)

    def _reason(self, cause: Exception) -> str:
        message = getattr(cause, "server_message", None) or str(cause)
        return self._cleaned(" ".join(message.split())) or type(cause).__name__

    def _nobody_there(self) -> str:
        if self._token:
            return "no such repository is visible to this token; check its name"
        return "there is no such public repository; for a private one `hf auth login`, or HF_TOKEN"


def _require_valid(repository: str, shown: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as cause:
        raise CacheError(f"{shown}: {cause!s:.200}") from cause


def _end_silence() -> None:
    """Let no request of huggingface_hub wait without an end, as it does by default."""
    session = huggingface_hub.get_session()
    if session.timeout.read is None:
        session.timeout = _SILENCE_S


@contextmanager
def _quietly() -> Iterator[None]:
    """Without bars, warnings and the log lines of tries, in which signed URLs may stand."""
    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bars:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()
