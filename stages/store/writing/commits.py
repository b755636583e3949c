"""The commits of one teacher as a writer knows them, kept up to date under the cache's lock.

Cost: that of what has changed since the last look, however many shards there are. Whoever makes or
removes a commit record notes the number of its shard (`../files/lock.py`), so only those records
are read; a number alone does not identify a shard, which may have been dropped and made again.

The stamp of the folder shows what came without a note, by hand or from an earlier version. Then all
records are looked at. It cannot replace the notes: a file system's clock ticks every few ms, and
two changes within a tick leave one stamp.
"""

from pathlib import Path
from typing import BinaryIO

from ....cache_schemas.layout import commit_file, numbered
from ....cache_schemas.manifest import CommitRecord, TeacherManifest
from ..files.lock import Mark, noted_changes
from ..files.plain_files import Stamp, entries, folder_stamp, is_there, stamp_of
from ..format.manifests import read_commit


class KnownCommits:
    """Commit records by shard number, read in the folder of a teacher."""

    def __init__(self, teacher: Path, manifest: TeacherManifest) -> None:
        self._teacher, self._manifest = teacher, manifest
        self.records: dict[int, CommitRecord] = {}
        self.history: list[CommitRecord] = []
        """Every record in the order in which it was first seen, those that are gone too."""
        self._stamps: dict[int, Stamp | None] = {}
        self._mark: Mark | None = None
        self._folder_stamp: Stamp | None = None
        self._lowest_free = 0

    def see(self, lock: BinaryIO) -> None:
        """Take note of what others have done, holding the lock of the cache."""
        noted, mark = noted_changes(lock, self._mark)
        stamp = folder_stamp(self._teacher / "commits")
        if noted is None or (not noted and stamp != self._folder_stamp):
            noted = self._changed_records()
        for shard in sorted(noted):
            self._forget(shard)
            file = commit_file(self._teacher, shard)
            if is_there(file):
                self._read(shard, file)
        self._mark, self._folder_stamp = mark, stamp

    def _changed_records(self) -> set[int]:
        there = numbered(entries(self._teacher / "commits", "*.json"))
        changed = {n for n, file in there.items() if self._stamps.get(n) != stamp_of(file)}
        return changed | (self.records.keys() - there.keys())

    def _forget(self, shard: int) -> None:
        if self.records.pop(shard, None) is not None:
            del self._stamps[shard]
            self._lowest_free = min(self._lowest_free, shard)

    def _read(self, shard: int, file: Path) -> None:
        stamp = stamp_of(file)
        record = read_commit(self._teacher, file, self._manifest)
        self.records[shard], self._stamps[shard] = record, stamp
        self.history.append(record)

    def since(self, seen: int) -> list[CommitRecord]:
        """The records after the first `seen` of the history that are still there."""
        return [r for r in self.history[seen:] if self.records.get(r.shard) is r]

    def lowest_free(self, first: int) -> int:
        """The lowest number, `first` or higher, that no commit has."""
        number = max(first, self._lowest_free)
        while number in self.records:
            number += 1
        self._lowest_free = number
        return number
