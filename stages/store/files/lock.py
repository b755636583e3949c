"""Locks of folders: that of a cache, held for moments, and those that are held for long.

Writers of any number of processes and hosts take turns at it. The kernel frees the lock when its
process dies. It is a `flock` on `writer.lock`, which local file systems and NFS 4 keep between all
processes that see the file. Where a file system only pretends, two writers may compute the same
text; no shard is ever torn, because files are moved into place out of folders that have one owner
(`../writing/reservations.py`).

The file tells, too, what was changed under its lock: a line for each commit record that was made or
removed, the number of its shard, or `all`. So a writer looks at new records only, however many
there are (`../writing/commits.py`). The lines are read under the lock, when a network file system
gives no stale ones, and only by writers that were open before: nothing depends on older lines, nor
on the file's being the same for ever.
"""

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ....cache_schemas.errors import OutputError, StorageError
from ....cache_schemas.layout import WRITER_LOCK
from .atomic import access_error, open_to_lock, storage_error
from .own_files import remove_file
from .plain_files import check_way

PATIENCE_S = 300.0
"""Far more than any lock is held: a longer wait is for a stopped process."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.1
_A_TURN_S = 1.0
"""Seconds of waiting before a message, unless for another thread of this process."""

_OURS: set[Path] = set()
"""Caches whose lock this process holds."""

_LOGGER = logging.getLogger("armada")


@contextmanager
def locked(cache: Path, patience_s: float = PATIENCE_S) -> Iterator[BinaryIO]:
    """Hold the lock of the cache at `cache`, whose folder must exist: its file. Not reentrant.

    Raises OutputError if the folder cannot be written, StorageError if the lock is not free for
    `patience_s` seconds."""
    with open_lock(cache, WRITER_LOCK) as file:
        _wait(file, cache, patience_s)
        _OURS.add(cache)
        try:
            yield file  # closing it frees the lock
        finally:
            _OURS.discard(cache)


def note_change(cache: Path, shard: int | None = None) -> None:
    """Note, under the lock, that the commit record of a shard, or any, is made or removed.

    A record is noted before it is made: who dies in between has noted what did not happen. Raises
    StorageError if the disk refuses."""
    line = "all\n" if shard is None else f"{shard:06d}\n"
    with open_lock(cache, WRITER_LOCK) as file:
        try:
            file.seek(0, os.SEEK_END)
            file.write(line.encode())
        except OSError as cause:
            raise storage_error(cache / WRITER_LOCK, cause) from cause


Mark = tuple[int, int]
"""How far the notes were read: the inode of the lock's file, and bytes."""

_NOTES = re.compile(rb"(\d{6}\n)*")
_MOST_NOTES_BYTES = 2**20


def noted_changes(lock: BinaryIO, since: Mark | None) -> tuple[set[int] | None, Mark]:
    """The shards that were noted since a mark, and the mark to go on from.

    None, for all shards, if there is no mark, or if what was written since is anything else."""
    found = os.fstat(lock.fileno())
    mark = found.st_ino, found.st_size
    inode, start = since or (0, 0)
    if since is None or inode != found.st_ino or not 0 <= mark[1] - start <= _MOST_NOTES_BYTES:
        return None, mark
    notes = os.pread(lock.fileno(), mark[1] - start, start)
    return set(map(int, notes.split())) if _NOTES.fullmatch(notes) else None, mark


def open_lock(folder: Path, name: str) -> BinaryIO:
    """A file to lock, made if it is not there; raises OutputError or AccessError if it cannot be
    written, LinkedPathError if it is a link."""
    check_way(folder / name, folder)
    try:
        return open_to_lock(folder / name)
    except PermissionError as cause:
        file = folder / name
        raise access_error(file if os.path.lexists(file) else folder) from cause
    except OSError as cause:
        raise OutputError(f"{folder}: cannot be written: {cause.strerror}") from cause


def _wait(file: BinaryIO, cache: Path, patience_s: float) -> None:
    started, pause, warned = time.monotonic(), _FIRST_PAUSE_S, False
    while not try_lock(file.fileno(), cache):
        waited = time.monotonic() - started
        if waited > patience_s:
            raise StorageError(
                f"cache {cache}: another process has held {WRITER_LOCK} for minutes; it may be "
                "stopped; end it and run the same command again"
            )
        if waited > _A_TURN_S and not warned and cache not in _OURS:
            warned = True
            _LOGGER.info(f"cache {cache}: waiting for another process, which holds {WRITER_LOCK}")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def take(folder: Path, name: str) -> BinaryIO | None:
    """Take a lock that `give_back` removes; None if another process has it, or gives it up this
    moment. Raises OutputError if the folder is not there or cannot be written."""
    file = open_lock(folder, name)
    ours = False
    try:
        ours = try_lock(file.fileno(), folder) and is_there(file, folder / name)
    finally:
        if not ours:
            file.close()
    return file if ours else None


def give_back(file: BinaryIO, folder: Path, name: str) -> None:
    """Free a lock and remove its file, unless somebody else has done so."""
    if is_there(file, folder / name):
        remove_file(folder / name, folder)
    file.close()


def is_there(file: BinaryIO, path: Path) -> bool:
    """True unless the previous holder deleted the lock file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


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
