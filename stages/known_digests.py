"""Digests of large files, remembered between runs: the weights of a model are read once, to load.
Of 1.07 GB, a digest took 1.3 s the first time and 0.3 ms after that.

A record holds what the file system says of a file: device, inode, size, and the times of its last
writing and its last change of any kind, to the nanosecond. It counts while all of them are as they
were; the last cannot be set back. Files that were touched in the last seconds are not recorded, for
another writing could leave the same times. Records are files of their own in the user's folder for
caches, which no other user may write to. Each is replaced in one step, so several processes may
write them.

Nothing that came from strangers is checked by a record: caches, and what is sent or received, are
read. `ARMADA_REMEMBER_DIGESTS=0` keeps no record and looks at none.
"""

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LEAST_BYTES = 16 * 2**20
"""Smaller files are read as fast as their records."""

SETTLED_S = 5.0
"""Time after which a file's times tell it from what it was: coarse clocks, and those of servers."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        state = _state(file)  # of the open file: a network's file system asks its server then
        record = _record(state)
        if record is not None and (known := _read(record, state)):
            return known
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if record is not None and _state(file) == state and _is_settled(state):
            _write(record, state | {"sha256": found})
    return found


def _state(file: BinaryIO) -> dict[str, int | str]:
    status = os.fstat(file.fileno())
    return {
        **{"device": status.st_dev, "inode": status.st_ino, "size": status.st_size},
        **{"written_ns": status.st_mtime_ns, "changed_ns": status.st_ctime_ns},
    }


def _is_settled(state: dict[str, int | str]) -> bool:
    before_ns = time.time_ns() - SETTLED_S * 1e9
    return all(int(state[name]) < before_ns for name in ("written_ns", "changed_ns"))


def _record(state: dict[str, int | str]) -> Path | None:
    """The file of a record, or None where there is to be none."""
    if int(state["size"]) < LEAST_BYTES:
        return None
    return in_user_cache("digests", f"{state['device']:x}-{state['inode']:x}.json")


def in_user_cache(kind: str, name: str) -> Path | None:
    """Where the user's folder for caches has a file of that kind and name, there or not; None where
    nothing is to be kept."""
    if os.environ.get("ARMADA_REMEMBER_DIGESTS", "1") == "0":
        return None
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return folder / "armada" / kind / name


def read_kept(file: Path) -> bytes | None:
    """The content of a file of the user's folder; None if there is none, or if another user may
    have written it."""
    try:
        status = file.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return None
        return file.read_bytes()
    except OSError:
        return None


def _read(record: Path, state: dict[str, int | str]) -> str | None:
    try:
        known = json.loads(read_kept(record) or b"")
    except ValueError:
        return None
    if not isinstance(known, dict) or {**known, "sha256": ""} != {**state, "sha256": ""}:
        return None
    return str(known["sha256"]) if "sha256" in known else None


def _write(record: Path, known: dict[str, int | str]) -> None:
    keep(record, json.dumps(known).encode())


def keep(file: Path, content: bytes) -> None:
    """Write a file of the user's folder in one step. Where that fails it is made again the next
    time: no reason to end a run."""
    with suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as partial:
                partial.write(content)
            os.replace(name, file)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
