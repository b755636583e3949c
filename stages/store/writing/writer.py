"""Write a teacher's features into a cache, shard by shard; nothing is visible before its commit.

    reserve     a shard number and keys that no other writer is at (`Work` chooses the keys)
    commit      files are written and synced in the reservation's own folder, then moved into
                place, then the commit record is, and only that makes the rows readable

Any number of writers may work in one cache at once: they hold its lock only to reserve and to move
finished files. A process that dies at any moment leaves whole shards, a reservation that the next
writer takes away, and maybe files that no commit record names, which a writer removes when it
opens. The Zarr shape is brought up to date after each commit and when a writer opens.

What a run wants answered is dealt out between it and all other writers of the same cache:

    work = Work(writer, keys)
    while (task := work.reserve()) is not None:
        ...compute keys[task.rows]; writer.commit(..., task.reservation)

Each task is the next rows, in the order given, whose keys are neither committed nor reserved; so
writers of one corpus take turns at it, and what a writer leaves undone (it failed, it died) another
takes up. A key is assigned once to a run: keys that came back without features are not tried again.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ....cache_schemas.codings import Fidelity
from ....cache_schemas.keys import IntArray, KeyArray, first_occurrences
from ....cache_schemas.layout import (
    ROWS_TABLE,
    commit_file,
    table_file,
    teacher_folder,
)
from ....cache_schemas.manifest import CommitRecord, RunRecord, TeacherManifest
from ..files.lock import locked
from ..files.own_files import write_file
from ..files.plain_files import is_there, read_document
from ..format.manifests import first_own_shard, refuse_part
from ..format.rows import KeyIndex, Rows
from ..format.tables import read_keys
from .commits import KnownCommits
from .reservations import PATIENCE_S, HeartbeatThread, Reservation, Reservations
from .staged_shard import StagedShard, Values
from .teacher_folder import (
    bring_up_to_date,
    create_cache,
    create_teacher,
    refuse_mirror,
    refuse_removed,
    write_zarr_metadata,
)


class CacheWriter:
    """One of the writers of one teacher's folder; use as a context manager."""

    def __init__(
        self, path: Path, manifest: TeacherManifest, patience_s: float = PATIENCE_S
    ) -> None:
        """`patience_s`: for how long a writer on another host may show no sign of life."""
        self.path, self.manifest = path, manifest
        self.folder = teacher_folder(path, manifest.fingerprint)
        self._reservations = Reservations(self.folder, patience_s)
        create_cache(path)
        refuse_mirror(path)
        with locked(path) as lock:
            create_teacher(path, manifest)
            refuse_part(path, manifest.fingerprint, "nothing can be added")
            self.known = KnownCommits(self.folder, manifest)
            self.known.see(lock)
            living = self._reservations.living()
            bring_up_to_date(self.folder, manifest, self.known.records, living)
        self._heart = HeartbeatThread()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back every reservation that is left."""
        self._heart.stop()

    @property
    def commits(self) -> list[CommitRecord]:
        """Commits seen by this writer, in shard order."""
        return [record for _, record in sorted(self.known.records.items())]

    def pending(self, keys: KeyArray) -> IntArray:
        """Positions, ascending, of the first appearance of each key that is not committed."""
        return pending(self.folder, self.commits, keys)

    @contextmanager
    def turn(self) -> Iterator["LockedView"]:
        """Hold the cache's lock, with all that others have done until now in sight."""
        with self._locked() as lock:
            self.known.see(lock)
            first = first_own_shard(self.path, self.manifest.fingerprint)
            yield LockedView(self.folder, self.known, self._reservations, self._heart, first, lock)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        with locked(self.path) as lock:
            refuse_removed(self.path, self.manifest)
            yield lock

    def reserve(self, keys: KeyArray) -> Reservation:
        """Reserve a shard for keys [N, 16] that the caller knows to be free."""
        with self.turn() as turn:
            return turn.reserve(keys)

    def commit(
        self,
        keys: KeyArray,
        features: Mapping[str, Values],
        truncated: npt.NDArray[np.bool_],
        tables: Mapping[str, pa.Table] | None = None,
        reservation: Reservation | None = None,
        fidelity: Mapping[str, Fidelity] | None = None,
    ) -> CommitRecord:
        """Make the features of N examples durable and visible: keys [N, 16], features [N, *shape],
        or ragged along their axes.

        They are of a reservation, or of one made for them. It is given back in any case. Raises
        StorageError if the disk refuses, ReservationLostError if another writer thought this one
        dead and took the keys over; then nothing of this shard is visible."""
        assert 1 <= len(keys) <= self.manifest.rows_per_shard, len(keys)
        reservation = reservation or self.reserve(keys)
        try:
            shard = StagedShard(self.folder, self.manifest, reservation)
            record = shard.write(keys, truncated, features, tables or {}, fidelity or {})
            with self.turn() as turn:
                shard.move_into_place()
                turn.see()
                write_zarr_metadata(self.folder, self.manifest, turn.commits)
        finally:
            self.release(reservation)
        return record

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back; its keys are anybody's again, unless they are committed."""
        self._heart.remove(reservation.staging)

    def record_run(self, run_id: str, record: RunRecord) -> None:
        """Write or replace the provenance record of a run."""
        with self._locked():
            write_file(self._run_file(run_id), [record.to_json()], self.path)

    def update_run(self, run_id: str, changed: Callable[[RunRecord | None], RunRecord]) -> None:
        """Write what `changed` makes of a run's record, None if there is none: no other writer's
        change comes between."""
        path = self._run_file(run_id)
        with self._locked():
            before = read_document(RunRecord, path, self.path) if path.exists() else None
            write_file(path, [changed(before).to_json()], self.path)

    def _run_file(self, run_id: str) -> Path:
        return self.folder / "runs" / f"{run_id}.json"


class LockedView:
    """View and operations of a writer while it holds the lock."""

    def __init__(
        self,
        teacher: Path,
        known: KnownCommits,
        reservations: Reservations,
        heart: HeartbeatThread,
        first_own: int,
        lock: BinaryIO,
    ) -> None:
        """`first_own` is the lowest number that a new shard may have."""
        self.commits: Mapping[int, CommitRecord] = known.records
        self._teacher, self._known, self._lock = teacher, known, lock
        self._reservations, self._heart, self._first_own = reservations, heart, first_own

    def see(self) -> None:
        """Bring `commits` up to date with what was done in this turn."""
        self._known.see(self._lock)

    @cached_property
    def reserved(self) -> dict[int, Path]:
        """Shard number -> folder of each reservation, ours too; dead writers' are removed."""
        return self._reservations.living()

    def reserved_keys(self) -> Iterator[KeyArray]:
        """The keys [N, 16] of each reservation. One that is given back this moment has none, and
        its number is free again; one whose keys were seen counts until the turn ends."""
        for shard, folder in list(self.reserved.items()):
            keys = self._reservations.keys(folder)
            if len(keys):
                yield keys
            else:
                del self.reserved[shard]

    def reserve(self, keys: KeyArray, preferred: int | None = None) -> Reservation:
        """Reserve keys [N, 16] and the preferred shard number, or the lowest that is free."""
        first, reserved = self._first_own, self.reserved.keys() | self._reservations.numbers()
        lowest = self._known.lowest_free(first)
        numbers = chain([] if preferred is None else [max(preferred, first)], count(lowest))
        shard = next(n for n in numbers if n not in reserved and self._is_free(n))
        reservation = self._reservations.make(shard, keys)
        self._heart.add(reservation.staging)
        return reservation

    def _is_free(self, number: int) -> bool:
        """Looked at on the disk too: nothing that was copied there is written over."""
        return number not in self.commits and not is_there(commit_file(self._teacher, number))


def pending(folder: Path, commits: list[CommitRecord], keys: KeyArray) -> IntArray:
    """Positions, ascending, of the first appearance of each key that no commit holds."""
    first = first_occurrences(keys)
    asked, still_open = KeyIndex(keys[first]), np.ones(len(first), dtype=bool)
    for commit in commits:  # one at a time: a cache may hold far more keys than are looked up
        table = table_file(folder, ROWS_TABLE, commit.shard)
        still_open[asked.found(read_keys(table, commit.rows))] = False
    return first[still_open]


POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Task:
    """Positions [N] in the keys of the work, ascending, and the shard that is to hold them."""

    rows: Rows
    reservation: Reservation


class Work:
    """The pending keys of one run. `waiting` is called with a number of keys when all that is left
    is what other writers are at: until they commit it, or die."""

    def __init__(
        self,
        writer: CacheWriter,
        keys: KeyArray,
        waiting: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._writer, self._keys, self._waiting = writer, keys, waiting
        self._rows = first_occurrences(keys)
        self._index = KeyIndex(keys[self._rows])
        self._open = np.ones(len(self._rows), dtype=bool)
        self._dealt = np.zeros(len(self._rows), dtype=bool)
        self._counted = 0
        self._count_commits()
        self.pending = int(self._open.sum())
        """Keys that were not committed when the work began."""

    @property
    def done_elsewhere(self) -> int:
        """Keys that other writers have committed since."""
        return self.pending - int((self._open | self._dealt).sum())

    def reserve(self, preferred: int | None = None) -> Task | None:
        """The next task, of at most `rows_per_shard` keys; None when there is none left.

        `preferred`: the shard number to take, if it is free."""
        while (task := self.reserve_now(preferred)) is None:
            mine = self._open & ~self._dealt
            if not mine.any():
                return None
            self._waiting(int(mine.sum()))
            time.sleep(POLL_S)
        return task

    def reserve_now(self, preferred: int | None = None) -> Task | None:
        """The same, without waiting for what other writers are computing."""
        if not (self._open & ~self._dealt).any():
            return None
        with self._writer.turn() as turn:
            taken = self._see(turn)
            mine = self._open & ~self._dealt & ~taken
            free = np.flatnonzero(mine)[: self._writer.manifest.rows_per_shard]
            if not len(free):
                return None
            self._dealt[free] = True
            rows = self._rows[free]
            return Task(rows, turn.reserve(self._keys[rows], preferred))

    def put_back(self, task: Task) -> None:
        """Deal out again what another writer took over from us, unless that commits it."""
        self._dealt[np.searchsorted(self._rows, task.rows)] = False

    def _see(self, turn: LockedView) -> npt.NDArray[np.bool_]:
        """Take note of new commits; returns which keys are reserved."""
        self._count_commits()
        taken = np.zeros(len(self._rows), dtype=bool)
        for keys in turn.reserved_keys():
            taken[self._index.found(keys)] = True
        return taken

    def _count_commits(self) -> None:
        known = self._writer.known
        seen = len(known.history)  # first: another thread's turn may add to it
        for record in known.since(self._counted):
            self._count(record)
        self._counted = seen

    def _count(self, record: CommitRecord) -> None:
        path = table_file(self._writer.folder, ROWS_TABLE, record.shard)
        self._open[self._index.found(read_keys(path, record.rows))] = False
