"""Join caches: rows that a cache does not hold yet are copied into it from others.

In: the destination's manifest of one teacher, and caches that hold the same teacher. Out: full
shards of the destination, in the order of the sources, each committed like any other; so an
interrupted merge continues where it stopped, and other writers may work beside it.

If two caches hold one key, the destination's row stays, else the first source's: on a GPU, equal
teachers agree up to rounding only. Memory: 40 bytes a key of the sources, and one shard of the
destination. A source is read as it was when it was opened, and no file of it is used before its
size and checksum were right, once: keys when the merge begins, a feature or a table when rows of it
are first wanted.

A run says what each shard it wrote cost. A shard of the destination is filled from other shards, so
each of its rows brings its share, the seconds of its old shard divided by that shard's rows, and
the shares are added up under the run's id and the new shard's number. So in any cache the sum of
`teacher_seconds` over all runs is what the answers that are there cost: once, however often and
from however many copies a row could have come. What was paid for answers that were not taken stays
behind. Likewise `truncated_examples` counts rows that were taken. A merge that is killed between a
commit and its run records (a moment) loses that shard's share.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ....cache_schemas.codings import Fidelity, combined
from ....cache_schemas.errors import CacheError, ReservationLostError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import KeyArray
from ....cache_schemas.layout import ROWS_TABLE
from ....cache_schemas.manifest import CommitRecord, RunRecord, TeacherManifest
from ...ragged import Ragged
from ..format.manifests import refuse_part
from ..format.rows import Rows
from ..format.tables import read_table, read_whole_table
from ..format.zarr_shards import DenseArray
from ..reading.feature_array import RaggedArray
from ..reading.reader import Cache
from ..writing.reservations import Reservation
from ..writing.staged_shard import Values
from ..writing.writer import CacheWriter, Work


class SourceCache:
    """The features of one teacher in a cache that is merged from."""

    def __init__(self, path: Path, manifest: TeacherManifest) -> None:
        """Raises CacheError if some files were left away on purpose, DamagedCacheError if not."""
        refuse_part(path, manifest.fingerprint, "its rows cannot be copied")
        self.cache = Cache(path, manifest, verify=True)
        self.keys = self.cache.keys
        self.runs = self.cache.runs_by_id()
        self._ragged: dict[str, RaggedArray] = {}

    def ragged(self, feature: str) -> RaggedArray:
        """A feature along an axis; its lengths are read once."""
        if feature not in self._ragged:
            self._ragged[feature] = self.cache.ragged(feature)
        return self._ragged[feature]

    def shards(self) -> list["SourceShard"]:
        """All that is committed, in order."""
        commits = self.cache.commits
        firsts = np.cumsum([0, *(commit.rows for commit in commits)]).tolist()
        return [
            SourceShard(self, commit, first) for commit, first in zip(commits, firsts, strict=False)
        ]


class SourceShard:
    """One shard of a source; rows are counted from its own first one."""

    def __init__(self, source: SourceCache, commit: CommitRecord, first: int) -> None:
        """`first`: the shard's first row among those of the cache."""
        self._source, self._commit, self._first = source, commit, first
        self.rows = commit.rows
        self.fidelity = commit.fidelity
        self.tables = tuple(sorted(commit.tables.keys() - {ROWS_TABLE}))
        """Tables beside the keys."""

    def truncated(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether the texts of some rows were cut, [B]."""
        path = self._source.cache.table_path(ROWS_TABLE, self._commit.shard)
        column = read_table(path, {"truncated": pa.bool_()}, self.rows)["truncated"]
        flags: npt.NDArray[np.bool_] = column.fill_null(False).to_numpy()[rows]
        return flags

    def gather(self, feature: str, rows: Rows, out: DenseArray) -> None:
        """Read some rows of a feature into `out` [B, *shape]."""
        self._source.cache[feature].gather(self._first + rows, out)

    def ragged(self, feature: str, rows: Rows) -> Ragged:
        """Some rows of a feature along an axis."""
        return self._source.ragged(feature).gather(self._first + rows)

    def table(self, name: str, rows: Rows) -> pa.Table:
        """Some rows of a table, all columns."""
        path = self._source.cache.table_path(name, self._commit.shard)
        return read_whole_table(path, self.rows).take(rows)

    def costs(self) -> Iterator[tuple[str, RunRecord, float]]:
        """The runs that wrote the shard, by id, and the teacher's seconds for one row."""
        for name, run in self._source.runs.items():
            if self._commit.shard in run.teacher_seconds:
                yield name, run, run.teacher_seconds[self._commit.shard] / self.rows


CutRows = tuple[SourceShard, npt.NDArray[np.bool_]]
"""Rows taken from one shard: for each, whether its text was truncated."""


class CarriedRuns:
    """Brings the runs of sources along, after each commit."""

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer

    def carry(self, shard: int, taken: Sequence[CutRows]) -> float:
        """Account for a new shard that was made of the rows taken.

        Returns the seconds that came with it."""
        seconds: dict[str, float] = {}
        truncated: dict[str, int] = {}
        records: dict[str, RunRecord] = {}
        for source, cut in taken:
            for name, record, each in source.costs():
                records[name] = record
                seconds[name] = seconds.get(name, 0.0) + each * len(cut)
                truncated[name] = truncated.get(name, 0) + int(cut.sum())
        for name, record in records.items():
            self._add(name, record, shard, seconds[name], truncated[name])
        return sum(seconds.values())

    def _add(self, name: str, source: RunRecord, shard: int, seconds: float, cut: int) -> None:
        def added(here: RunRecord | None) -> RunRecord:
            known = here.teacher_seconds if here else {}
            changed = {
                "teacher_seconds": known | {shard: round(seconds, 6)},
                "truncated_examples": (here.truncated_examples if here else 0) + cut,
            }
            return (here or source).model_copy(update=changed)

        self._writer.update_run(name, added)


Advance = Callable[[int], None]
Part = tuple[SourceShard, Rows]
"""Rows [B] of one source shard, ascending, counted from its first."""


@dataclass(frozen=True, slots=True)
class Merged:
    """Result for one teacher: rows of the sources; of these, rows copied, new shards, and rows that
    were already there; teacher seconds of the copied rows."""

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
    """Copy into the cache at `path` the rows of a teacher that it lacks, from `sources`.

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
    """Fidelity measured on the rows; unknown for parts of a shard."""
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
            f"({' '.join(str(cause).split()):.200}); merge these into separate caches"
        ) from cause
