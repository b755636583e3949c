"""Join caches: rows that a cache does not hold yet are copied into it from others.

What comes in: the destination's manifest of one teacher, and caches that hold the same teacher.
What goes out: full shards of the destination, in the order of the sources, each committed like any
other; so a merge that was cut goes on where it was, and other writers may work beside it.

Where two caches answer one key, the destination's answer stays, else the first source's: on a GPU,
equal teachers answer equally up to rounding only. Memory: 40 bytes a key of the sources, and one
shard of the destination.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ....cache_schemas.errors import CacheError, ReservationLostError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.fidelity import Fidelity, combined
from ....cache_schemas.keys import KeyArray
from ....cache_schemas.manifest import TeacherManifest
from ..format.rows import Ragged, Rows
from ..writing.reservations import Reservation
from ..writing.staged_shard import Values
from ..writing.writer import CacheWriter, Work
from .carried_runs import CarriedRuns
from .merge_source import SourceCache, SourceShard

Advance = Callable[[int], None]
Part = tuple[SourceShard, Rows]
"""Rows [B] of one source shard, ascending, counted from its first."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of one teacher: rows of the sources; of these, rows copied, to so many new
    shards, and rows whose key was there already; seconds of the teacher that came with the rows."""

    fingerprint: str
    kind: str
    name: str
    rows: int
    copied: int
    already_there: int
    shards: int
    teacher_seconds: float


def merge_teacher(
    path: Path,
    manifest: TeacherManifest,
    sources: Sequence[tuple[Path, TeacherManifest]],
    advance: Advance = lambda rows: None,
    waiting: Advance = lambda rows: None,
) -> Merged:
    """Copy into the cache at `path` what it lacks of a teacher's answers in `sources`.

    Every cache has a manifest of its own: the rows of a shard may differ. `advance` is called with
    numbers of source rows that are dealt with, `waiting` with the number of keys that are left when
    other writers are at all of these. Raises DamagedCacheError for files of a source that are not
    what was committed; what was copied before stays."""
    opened = [SourceCache(*source) for source in sources]
    keys = np.concatenate([source.keys for source in opened])
    shards = [shard for source in opened for shard in source.shards()]
    with CacheWriter(path, manifest) as writer:
        merge = _Merge(writer, shards, advance, waiting)
        merge.run(keys)
    return Merged(
        fingerprint=manifest.fingerprint,
        kind=manifest.spec.kind,
        name=manifest.spec.name,
        rows=len(keys),
        copied=merge.copied,
        already_there=len(keys) - merge.copied,
        shards=merge.shards,
        teacher_seconds=round(merge.seconds, 6),
    )


class _Merge:
    """Rows are those of all source shards, one shard after another."""

    def __init__(
        self,
        writer: CacheWriter,
        sources: Sequence[SourceShard],
        advance: Advance,
        waiting: Advance,
    ) -> None:
        self._writer, self._sources = writer, sources
        self._advance, self._waiting = advance, waiting
        self._starts = np.cumsum([0, *(shard.rows for shard in sources)], dtype=np.int64)
        self._runs = CarriedRuns(writer)
        self.copied = self.shards = 0
        self.seconds = 0.0

    def run(self, keys: KeyArray) -> None:
        """Copy what is lacking of the keys of all rows, [N, 16]."""
        for tables, rows in self._by_tables():
            work = Work(self._writer, keys[rows], self._waiting)
            self._advance(len(rows) - work.pending)
            while (task := work.reserve()) is not None:
                taken = rows[task.rows]
                try:
                    self._copy(task.reservation, keys[taken], self._parts(taken), tables)
                except ReservationLostError:
                    work.put_back(task)

    def _by_tables(self) -> Iterator[tuple[tuple[str, ...], Rows]]:
        """Rows that have the same tables: one run may have kept images, another not, but a shard
        has a table for all of its rows or for none."""
        sets = [shard.tables for shard in self._sources]
        for tables in dict.fromkeys(sets):
            wanted = np.repeat([its == tables for its in sets], np.diff(self._starts))
            yield tables, np.flatnonzero(wanted)

    def _copy(
        self, reservation: Reservation, keys: KeyArray, parts: list[Part], tables: tuple[str, ...]
    ) -> None:
        truncated = [shard.truncated(inside) for shard, inside in parts]
        record = self._writer.commit(
            keys,
            {spec.name: _gather(spec, parts) for spec in self._writer.manifest.spec.features},
            np.concatenate(truncated),
            {name: _join(name, parts) for name in tables},
            reservation,
            _fidelity(parts),
        )
        came_from = [(shard, cut) for (shard, _), cut in zip(parts, truncated, strict=True)]
        self.seconds += self._runs.carry(record.shard, came_from)
        self.copied += record.rows
        self.shards += 1
        self._advance(record.rows)

    def _parts(self, rows: Rows) -> list[Part]:
        """Ascending rows as rows of each of the shards they are in."""
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        return [
            (self._sources[shard], rows[shard_of_row == shard] - self._starts[shard])
            for shard in np.unique(shard_of_row)
        ]


def _gather(spec: FeatureSpec, parts: Sequence[Part]) -> Values:
    if spec.axis is not None:
        found = [shard.ragged(spec.name, inside) for shard, inside in parts]
        values, lengths = zip(*((each.values, each.lengths) for each in found), strict=True)
        return Ragged(np.concatenate(values), np.concatenate(lengths))
    rows = sum(len(inside) for _, inside in parts)
    values, done = np.empty((rows, *spec.shape), spec.dtype), 0
    for shard, inside in parts:
        shard.gather(spec.name, inside, values[done : done + len(inside)])
        done += len(inside)
    return values


def _fidelity(parts: Sequence[Part]) -> dict[str, Fidelity]:
    """What was measured on the rows; of parts of a shard, nothing is known."""
    if any(len(inside) < shard.rows for shard, inside in parts):
        return {}
    names = parts[0][0].fidelity.keys()
    return {
        name: combined(shard.fidelity[name] for shard, _ in parts)
        for name in names
        if all(name in shard.fidelity for shard, _ in parts)
    }


def _join(name: str, parts: Sequence[Part]) -> pa.Table:
    tables = [shard.table(name, inside) for shard, inside in parts]
    try:
        return pa.concat_tables(tables)
    except pa.ArrowInvalid as cause:
        raise CacheError(
            f"table {name!r}: its columns differ between the sources "
            f"({' '.join(str(cause).split()):.200}); merge these into caches of their own"
        ) from cause
