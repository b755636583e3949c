"""Reservations of keys by writers: one folder with one live owner for each shard in progress.

`reservations/<shard>/` appears with the keys of the shard in it and is its writer's own until the
commit moves the finished files out of it into their places. All methods of `Reservations` are
called while holding the cache's lock, so no two writers reserve the same number or the same key.

A folder of `Staging` appears under its name in one step (rename), with all that its owner put into
it, so two owners of one name cannot be. It holds a file `heartbeat`, locked by its owner and
rewritten every few seconds: a process that finds the lock free on the same host, or the same
heartbeat for `patience_s` seconds on any, knows that the owner is dead. Only the watcher's own
monotonic clock is read, so clocks that differ or go backwards do not matter.

The dead are fenced off by renaming their folder away before it is removed. An owner that was only
stopped, and continues later, works in `<name>/<its own random name>/`, which is nowhere any more,
even if the name has a new owner: it can write nothing and move nothing.
"""

import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.keys import KEY_BYTES, KeyArray, keys_to_array
from ....cache_schemas.layout import numbered, reservation_folder
from ....cache_schemas.manifest import MAX_ROWS_PER_SHARD
from ..files.atomic import make_folders, open_new, open_to_lock, storage_error
from ..files.lock import try_lock
from ..files.own_files import make_folder
from ..files.plain_files import check_folders, entries, read_bytes

HEARTBEAT = "heartbeat"
BEAT_S = 5.0
PATIENCE_S = 60.0
"""A dozen missed beats. To be too hasty costs work done twice, nothing else."""

_NEW, _DEAD = "new-", "dead-"


def host_id() -> str:
    """Identifies the running kernel: file locks are reliable within one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node() or "unknown"


class Staging:
    """A folder of ours."""

    def __init__(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Make it, with `files` in it; raises FileExistsError if somebody has the name already,
        another OSError if the disk refuses."""
        owner = secrets.token_hex(8)
        self.folder = folder
        self.workplace = folder / owner
        self._line = f"{host_id()} {owner}"
        self._beats = 0
        made = folder.with_name(_NEW + owner)
        make_folders(made / owner)
        self._heartbeat = open_to_lock(made / HEARTBEAT)
        try:
            try_lock(self._heartbeat.fileno(), made)
            self.beat()
            for name, content in files.items():
                with open_new(made / name) as file:
                    file.write(content)
            _rename_folder(made, folder)
        except BaseException:
            self._heartbeat.close()
            shutil.rmtree(made, ignore_errors=True)
            raise

    def beat(self) -> None:
        """Show that the owner lives."""
        self._beats += 1
        os.pwrite(self._heartbeat.fileno(), f"{self._line} {self._beats:020d}\n".encode(), 0)

    def is_ours(self) -> bool:
        """Whether the folder still belongs to this owner."""
        try:
            there = (self.folder / HEARTBEAT).stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._heartbeat.fileno()))

    def remove(self) -> None:
        """Give the name back; harmless if the folder was taken away."""
        try:
            if self.is_ours():
                discard(self.folder)
        finally:
            self._heartbeat.close()


def _rename_folder(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError as cause:
        if folder.exists():
            raise FileExistsError(str(folder)) from cause
        raise


def discard(folder: Path) -> None:
    """Fence off a folder in one step, then remove it; harmless if it is gone."""
    dead = folder.with_name(_DEAD + secrets.token_hex(8))
    try:
        folder.rename(dead)
    except FileNotFoundError:
        return
    except OSError as cause:
        raise storage_error(folder, cause) from cause
    shutil.rmtree(dead, ignore_errors=True)


def is_rubbish(folder: Path) -> bool:
    """Whether a folder was left while it was being made or removed."""
    return folder.name.startswith((_NEW, _DEAD))


def _heartbeat(path: Path) -> tuple[str, bool]:
    """Its content, and whether its lock is free. The lock is tested only on the owner's host, and
    only with permission to write the file: other users rely on the content."""
    try:
        descriptor, writable = _open(path, os.O_RDWR), True
    except PermissionError:
        descriptor, writable = _open(path, os.O_RDONLY), False
    try:
        line = os.pread(descriptor, 200, 0).decode("ascii", "replace")
        on_this_host = line.partition(" ")[0] == host_id()
        return line, on_this_host and writable and try_lock(descriptor, path)
    finally:
        os.close(descriptor)


def _open(path: Path, mode: int) -> int:
    """Open without following links and without blocking."""
    return os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


class Watch:
    """Distinguishes dead owners from live ones."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._seen: dict[Path, tuple[str, float]] = {}

    def is_dead(self, folder: Path) -> bool:
        """Whether the owner of a folder has died; a folder that is gone has no dead owner."""
        if not folder.is_dir():
            return False
        try:
            line, lock_is_free = _heartbeat(folder / HEARTBEAT)
        except OSError as error:  # there is none, or a pipe: that will not change either
            line, lock_is_free = f"no heartbeat: {error.errno}", False
        return lock_is_free or self._unchanged(folder, line)

    def _unchanged(self, folder: Path, line: str) -> bool:
        seen, since = self._seen.get(folder, ("", 0.0))
        if seen != line:
            self._seen[folder] = (line, time.monotonic())
            return False
        return time.monotonic() - since > self._patience_s


class HeartbeatThread:
    """One thread that beats for all folders of a writer, until it is stopped."""

    def __init__(self) -> None:
        self._of: set[Staging] = set()
        self._guard = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def add(self, staging: Staging) -> None:
        """Begin to beat for a folder."""
        with self._guard:
            self._of.add(staging)

    def remove(self, staging: Staging) -> None:
        """No longer beat for a folder, and remove it."""
        with self._guard:
            self._of.discard(staging)
            staging.remove()

    def stop(self) -> None:
        """Remove every folder that is left."""
        self._stopped.set()
        self._thread.join()
        for staging in list(self._of):
            self.remove(staging)

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_S):
            with self._guard:
                for staging in self._of:
                    # A disk that refuses a beat makes us look dead; our next write reports why.
                    with suppress(OSError):
                        staging.beat()


KEYS = "keys"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A shard number and a folder to make the shard in, both ours until the commit."""

    shard: int
    staging: Staging


class Reservations:
    """The reservations of one teacher's folder, as one writer sees them."""

    def __init__(self, teacher: Path, patience_s: float) -> None:
        self._teacher, self._cache = teacher, teacher.parent.parent
        self._watch = Watch(patience_s)

    def judged(self) -> tuple[list[Path], list[Path]]:
        """The folders of living owners, those of pulls too, and those without an owner."""
        there = entries(self._teacher / "reservations")
        folders = [path for path in there if path.is_dir() and not path.is_symlink()]
        dead = [f for f in folders if is_rubbish(f) or self._watch.is_dead(f)]
        return [folder for folder in folders if folder not in dead], dead

    def living(self) -> dict[int, Path]:
        """Shard number -> folder; those of dead owners are removed."""
        living, dead = self.judged()
        for folder in dead:
            check_folders(folder, self._cache)
            discard(folder)
        return numbered(living)

    def numbers(self) -> set[int]:
        """Shard numbers that are reserved, or that something else has the name of."""
        return set(numbered(entries(self._teacher / "reservations")))

    def keys(self, folder: Path) -> KeyArray:
        """The keys that a reservation holds, [N, 16]; none if it was given back this moment, or
        is no writer's."""
        try:
            data = read_bytes(folder / KEYS, self._cache, MAX_ROWS_PER_SHARD * KEY_BYTES)
        except DamagedCacheError:
            if os.path.lexists(folder / KEYS):
                raise
            return keys_to_array([])
        whole = len(data) // KEY_BYTES * KEY_BYTES
        return np.frombuffer(data[:whole], dtype=np.uint8).reshape(-1, KEY_BYTES)

    def make(self, shard: int, keys: KeyArray) -> Reservation:
        """Reserve a free shard number, for keys [N, 16]."""
        folder = reservation_folder(self._teacher, shard)
        make_folder(folder.parent, self._cache)
        try:
            return Reservation(shard, Staging(folder, {KEYS: keys.tobytes()}))
        except OSError as cause:
            raise storage_error(folder, cause) from cause
