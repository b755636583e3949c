"""One lock for a cache, held for moments: while a writer reserves, commits or removes.

Writers of any number of processes and hosts take turns at it. The kernel frees the lock when its
process dies. It is a `flock` on `writer.lock`, which local file systems and NFS 4 keep between all
processes that see the file. Where a file system only pretends, two writers may ask about the same
text; no shard is ever torn, because files are moved into place out of folders that have one owner
(`../writing/reservations.py`).
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ....cache_schemas.errors import OutputError, StorageError
from ....cache_schemas.layout import WRITER_LOCK
from .modes import open_to_lock
from .plain_files import check_way

PATIENCE_S = 300.0
"""Far more than any turn takes: who waits longer waits for a process that is stopped."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.1


@contextmanager
def locked(cache: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock of the cache at `cache`, whose folder must exist. Not reentrant.

    Raises OutputError if the folder cannot be written, StorageError if the lock is not free for
    `patience_s` seconds."""
    with open_lock(cache, WRITER_LOCK) as file:
        _wait(file, cache, time.monotonic() + patience_s)
        yield  # closing the file frees the lock


def open_lock(folder: Path, name: str) -> BinaryIO:
    """A file to lock, made if it is not there; raises OutputError if it cannot be written,
    LinkedPathError if it is a link."""
    check_way(folder / name, folder)
    try:
        return open_to_lock(folder / name)
    except OSError as cause:
        raise OutputError(f"{folder}: cannot be written: {cause.strerror}") from cause


def _wait(file: BinaryIO, cache: Path, deadline: float) -> None:
    pause = _FIRST_PAUSE_S
    while not try_lock(file.fileno(), cache):
        if time.monotonic() > deadline:
            raise StorageError(
                f"cache {cache}: another process has held {WRITER_LOCK} for minutes; it may be "
                "stopped; end it and run the same command again"
            )
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def try_lock(descriptor: int, where: Path) -> bool:
    """Take the lock of an open file, if it is free; raises StorageError where there are none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as cause:
        raise StorageError(
            f"{where}: the file system cannot lock files ({cause.strerror}); put it on one that can"
        ) from cause
    return True
