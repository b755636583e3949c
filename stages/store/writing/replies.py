"""Replies that were paid for and are in no shard yet: a log beside a teacher's features.

A server's reply is on the disk before anything is made of it, so that whoever goes on after a kill
does not ask, and pay, again. Replies that come at about the same time share one sync of the disk.

    teachers/<fingerprint>/kept-replies/<name>.log

Each process appends to a file of its own, which it holds a lock on, and reads those of all others:
what one that was killed had been told, the next one knows. An entry names one or more keys, each of
an example and whatever else its teacher tells requests apart by, and has the reply as it came, with
a checksum: a torn end is no entry. Files are of limited size; one whose examples are all committed
is removed, by its owner or, if that is dead, by whoever sees it.
"""

import os
import secrets
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import xxhash

from ....cache_schemas.errors import ArmadaError, DamagedCacheError
from ....cache_schemas.keys import KEY_BYTES, KeyArray, keys_to_array
from ....cache_schemas.layout import teacher_folder
from ..files.atomic import open_new, storage_error, sync_folder
from ..files.lock import give_back, is_there, open_lock, take, try_lock
from ..files.own_files import make_folder, remove_file, write_file
from ..files.plain_files import entries, plain_size

FOLDER = "kept-replies"
"""No name of a feature has a hyphen."""

NOTE, CLAIM = "note.json", "note.lock"
FILE_BYTES = 64 * 2**20
_MAGIC = b"armada replies 1\n"
_FRAME = struct.Struct("<IQ")
"""Bytes of an entry, and their checksum."""
_COUNT, _LENGTH = struct.Struct("<H"), struct.Struct("<B")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as it came, for how many keys it was kept, and which of them was looked up, from
    0."""

    body: bytes
    count: int
    index: int


@dataclass(slots=True)
class _File:
    """A file of replies: how many bytes of it are known, the keys in it that are in no shard, and,
    where this process holds its lock, the open file."""

    path: Path
    known: int = len(_MAGIC)
    keys: set[bytes] = field(default_factory=set)
    held: BinaryIO | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an entry is, and which of its keys is meant."""

    file: _File
    start: int
    size: int
    index: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry to be written, and who waits for it."""

    keys: tuple[bytes, ...]
    payload: bytes
    written: "Future[None]"


class KeptReplies:
    """The replies kept for one teacher of a cache. Its methods may be called from any thread; those
    that read or write raise StorageError if the disk refuses, LinkedPathError for a link."""

    def __init__(
        self, cache: Path, fingerprint: str, pending: Callable[[KeyArray], Iterable[int]]
    ) -> None:
        """`pending`: the positions of those keys [N, 16] that no shard holds."""
        self._cache, self._pending = cache, pending
        self._folder = teacher_folder(cache, fingerprint) / FOLDER
        self._lock = threading.RLock()
        self._files: dict[Path, _File] = {}
        self._places: dict[bytes, _Place] = {}
        self._current: _File | None = None
        self._claimed: BinaryIO | None = None
        self._waiting: SimpleQueue[_Entry | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="replies", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many keys have a reply."""
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        """Whether a key has a reply."""
        return key in self._places

    @property
    def note_file(self) -> Path:
        """The file of the note."""
        return self._folder / NOTE

    def noted(self) -> bytes | None:
        """The note that was left beside the replies, by whichever process; None: there is none."""
        try:
            plain_size(self.note_file, self._cache)
            return self.note_file.read_bytes()
        except (DamagedCacheError, FileNotFoundError):
            if os.path.lexists(self.note_file):
                raise
            return None

    def note(self, content: bytes | None) -> None:
        """Leave a note in place of the one before, durably; None: remove it."""
        if content is None:
            remove_file(self.note_file, self._cache)
        else:
            make_folder(self._folder, self._cache)
            write_file(self.note_file, [content], self._cache)

    def claim(self) -> bool:
        """Be the one process that leaves notes, until `close`; False while another is."""
        make_folder(self._folder, self._cache)
        self._claimed = self._claimed or take(self._folder, CLAIM)
        return self._claimed is not None

    def see(self) -> None:
        """Take note of what others have kept by now."""
        with self._lock:
            for path in entries(self._folder, "*.log"):
                file = self._files.setdefault(path, _File(path))
                if file.held is None:  # what is ours is known
                    self._read(file)
            examples = sorted({key[:KEY_BYTES] for key in self._places})
            pending = set(self._pending(keys_to_array(examples))) if examples else set()
            self._forget({key for at, key in enumerate(examples) if at not in pending})

    def get(self, key: bytes) -> Reply | None:
        """The reply that was kept for a key; None if there is none."""
        with self._lock:
            if (place := self._places.get(key)) is None:
                return None
            try:
                with open(place.file.path, "rb") as source:
                    source.seek(place.start)
                    payload = source.read(place.size)
            except FileNotFoundError:  # the example was committed, and another process removed it
                return None
        keys, body = _parsed(payload)
        return Reply(zlib.decompress(body), len(keys), place.index)

    def keep(self, keys: Sequence[bytes], body: bytes) -> "Future[None]":
        """Keep a reply for keys, each of which begins with an example's: done when it is on the
        disk."""
        parts = [_COUNT.pack(len(keys)), *(_LENGTH.pack(len(key)) + key for key in keys)]
        written: Future[None] = Future()
        payload = b"".join([*parts, zlib.compress(body, level=1)])
        self._waiting.put(_Entry(tuple(keys), payload, written))
        return written

    def forget(self, examples: KeyArray) -> None:
        """The features of these examples [N, 16] are in a shard."""
        with self._lock:
            self._forget({bytes(key) for key in examples})

    def close(self) -> None:
        """Write what waits to be written; remove own files of which nothing is needed."""
        self._waiting.put(None)
        self._thread.join()
        if self._claimed is not None:
            give_back(self._claimed, self._folder, CLAIM)
            self._claimed = None
        with self._lock:
            self._current = None
            for file in [each for each in self._files.values() if each.held is not None]:
                self._remove_if_done(file)
                if file.held is not None:
                    file.held.close()
                    file.held = None

    def _forget(self, examples: set[bytes]) -> None:
        for file in list(self._files.values()):
            self._drop(file, {key for key in file.keys if key[:KEY_BYTES] in examples})
            self._remove_if_done(file)

    def _drop(self, file: _File, keys: set[bytes]) -> None:
        file.keys -= keys
        for key in keys:
            if (place := self._places.get(key)) is not None and place.file is file:
                del self._places[key]

    def _remove_if_done(self, file: _File) -> None:
        """Remove a file of which nothing is needed: one of ours, or of a process that has died, for
        the living append to theirs."""
        if file.keys or file is self._current:
            return
        if file.held is not None:
            self._remove(file)
            return
        with open_lock(file.path.parent, file.path.name) as held:
            if try_lock(held.fileno(), file.path):
                self._read(file)  # its last words may have come since
                if not file.keys:
                    self._remove(file)

    def _remove(self, file: _File) -> None:
        self._files.pop(file.path, None)
        remove_file(file.path, self._cache)
        if file.held is not None:
            file.held.close()
            file.held = None

    def _read(self, file: _File) -> None:
        """Take note of the entries that were appended."""
        try:
            plain_size(file.path, self._cache)
            with open(file.path, "rb") as source:
                if not _MAGIC.startswith(source.read(len(_MAGIC))):
                    raise DamagedCacheError(f"{file.path}: is no log of replies; remove it")
                source.seek(file.known)
                while (payload := _next_payload(source)) is not None:
                    self._note(file, _parsed(payload)[0], len(payload))
        except (DamagedCacheError, FileNotFoundError):
            if os.path.lexists(file.path):
                raise
            self._drop(file, set(file.keys))  # its owner needs it no longer
            del self._files[file.path]

    def _note(self, file: _File, keys: Iterable[bytes], size: int) -> None:
        """An entry with a payload of `size` bytes stands at the end of what is known."""
        start = file.known + _FRAME.size
        file.known = start + size
        for index, key in enumerate(keys):
            self._places[key] = _Place(file, start, size, index)
            file.keys.add(key)

    def _write_all(self) -> None:
        ended = False
        while not ended:
            taken = [self._waiting.get()]
            while not self._waiting.empty():
                taken.append(self._waiting.get())
            ended = None in taken
            if batch := [entry for entry in taken if entry is not None]:
                self._write(batch)

    def _write(self, batch: Sequence[_Entry]) -> None:
        try:
            file = self._file_to_append()
            _append(file, batch)
        except (OSError, ArmadaError) as cause:
            own = cause if isinstance(cause, ArmadaError) else storage_error(self._folder, cause)
            for entry in batch:
                entry.written.set_exception(own)
            return
        with self._lock:
            for entry in batch:
                self._note(file, entry.keys, len(entry.payload))
        for entry in batch:
            entry.written.set_result(None)

    def _file_to_append(self) -> _File:
        """The current file, or a new one where that is full or there is none."""
        file = self._current
        if file is not None and file.known < FILE_BYTES:
            return file
        make_folder(self._folder, self._cache)
        file = self._new_file()
        sync_folder(self._folder)
        with self._lock:
            self._files[file.path] = self._current = file
        return file

    def _new_file(self) -> _File:
        """A file that is ours. Until it is locked, another process may take it for that of one that
        died, and remove it: then the next."""
        while True:
            path = self._folder / f"{secrets.token_hex(8)}.log"
            held = open_new(path)
            if try_lock(held.fileno(), path) and is_there(held, path):
                held.write(_MAGIC)
                held.flush()
                return _File(path, held=held)
            held.close()


def _append(file: _File, batch: Sequence[_Entry]) -> None:
    """Write entries behind what is known of a file of ours, durably. What a write that failed has
    left there is written over."""
    assert file.held is not None
    file.held.seek(file.known)
    for entry in batch:
        checksum = xxhash.xxh3_64_intdigest(entry.payload)
        file.held.write(_FRAME.pack(len(entry.payload), checksum) + entry.payload)
    file.held.flush()
    os.fsync(file.held.fileno())


def _next_payload(source: BinaryIO) -> bytes | None:
    """The payload of the next entry; None if there is no whole one."""
    frame = source.read(_FRAME.size)
    if len(frame) < _FRAME.size:
        return None
    size, checksum = _FRAME.unpack(frame)
    payload = source.read(size)
    return payload if xxhash.xxh3_64_intdigest(payload) == checksum else None


def _parsed(payload: bytes) -> tuple[list[bytes], bytes]:
    """The keys of an entry, and its compressed reply."""
    (count,), at = _COUNT.unpack_from(payload), _COUNT.size
    keys = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        keys.append(payload[at : at + length])
        at += length
    return keys, payload[at:]
