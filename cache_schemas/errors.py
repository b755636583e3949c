"""Every error that armada raises on purpose, as one tree.

    ArmadaError
    ├── InputError              the user's input; exit code 2
    │   ├── JobError            a job file, an option or a combination of them
    │   ├── CorpusError         a file, a column, a row, a label
    │   ├── TeacherSourceError  a teacher that cannot be loaded safely
    │   ├── StudentSourceError  a student that cannot be loaded safely
    │   ├── OutputError         a folder that cannot take the output
    │   ├── AccessError         what this user may not read or write
    │   ├── MissingExtraError   a package that comes with an extra of the installation
    │   └── CacheError          a cache that cannot be used this way
    │       ├── CacheVersionError     written in another format version
    │       ├── TeacherMismatchError  other settings than the cached teacher's
    │       ├── MissingKeysError      texts that are not cached
    │       ├── MissingFeatureError   a feature the cache does not hold
    │       └── LinkedPathError       a symbolic link in a cache; a DamagedCacheError, too
    └── RunError                the run failed; exit code 1
        ├── TeacherOutputError  an answer that must not be stored
        ├── DamagedCacheError   bytes that are not what the commit record says
        ├── StorageError        the disk refused
        ├── ReservationLostError  another writer took a shard over
        ├── FollowerError       a process that only computes along; the first says more, if it can
        └── TrainingError       training cannot continue

A message is one line: what field, which value, what limit, what to do; nothing secret of a URL is
in it. `assert` is for our bugs.
"""

import re

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://|hf-dataset:)\S*")
_USER = re.compile(r"://(?:[^/\s]*|[^/\s@:]*:(?!\d{1,5}/)(?:(?!://)\S)*)@")
"""User name and password, also one with a slash in it; a colon and a number are a port."""

_PARAMETER = re.compile(r"""([?&;])(?:([^=&;#'"]*)=)?([^&;#]+?)(?=[&;#]|[,.:;)\]}'"]*$)""")
_PLAIN_PARAMETERS = {"split", "name", "revision", "version", "versionid", "format", "download"}


def shown_url(text: str) -> str:
    """A text without what may be secret of the URLs in it: user names and passwords, and all
    parameters but those that are known to be harmless."""
    return _URL.sub(lambda url: _PARAMETER.sub(_shown_parameter, _USER.sub("://", url[0])), text)


def without_user(text: str, url: str) -> str:
    """A text without the user name and password of a URL, also where it quotes a part of that URL
    that does not look like one (`'user:password@host'`), as messages of libraries do."""
    for user in re.findall(r"://((?:(?!://)\S)*@)", url):
        text = text.replace(user, "")
    return text


def _shown_parameter(found: re.Match[str]) -> str:
    mark, name, _ = found.groups()
    if name is None:
        return f"{mark}***"
    return found[0] if name.lower() in _PLAIN_PARAMETERS else f"{mark}{name}=***"


def one_line(text: str) -> str:
    """`text` with line breaks and other control characters written out.

    What messages and tables quote may come from strangers: it stays where it is put, and commands
    no terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ArmadaError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(shown_url(message)))


class InputError(ArmadaError):
    exit_code = 2


class JobError(InputError):
    pass


class CorpusError(InputError):
    pass


class TeacherSourceError(InputError):
    pass


class StudentSourceError(InputError):
    pass


class OutputError(InputError):
    pass


class AccessError(InputError):
    pass


class MissingExtraError(InputError):
    pass


class CacheError(InputError):
    pass


class CacheVersionError(CacheError):
    pass


class TeacherMismatchError(CacheError):
    pass


class MissingKeysError(CacheError):
    """Texts that are not cached; `positions` are their indices in the request."""

    def __init__(self, message: str, positions: list[int]) -> None:
        super().__init__(message)
        self.positions = positions

    def __reduce__(self) -> tuple[type["MissingKeysError"], tuple[str, list[int]]]:
        # Errors go from worker processes to the one that reports them.
        return type(self), (str(self), self.positions)


class MissingFeatureError(CacheError):
    pass


class RunError(ArmadaError):
    exit_code = 1


class TeacherOutputError(RunError):
    pass


class DamagedCacheError(RunError):
    pass


class FollowerError(RunError):
    pass


class StorageError(RunError):
    pass


class LinkedPathError(CacheError, DamagedCacheError):
    """A symbolic link where a cache has files and folders. Readers that tolerate damage tolerate
    it; but only people can fix it, and no computing brings it back."""


class ReservationLostError(RunError):
    pass


class TrainingError(RunError):
    pass
