"""Shards that rows are taken from: no file is used before its size and checksum were right.

A source is read as it was when it was opened. What a shard gives is checked once: its keys when the
merge begins, a feature or a table when rows of it are first wanted.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ....cache_schemas.layout import ROWS_TABLE
from ....cache_schemas.manifest import CommitRecord, RunRecord, TeacherManifest
from ..format.manifests import refuse_part
from ..format.rows import Ragged, Rows
from ..format.tables import read_table, read_whole_table
from ..format.zarr_shards import DenseArray
from ..reading.feature_array import RaggedArray
from ..reading.reader import Cache


class SourceCache:
    """The answers of one teacher in a cache that is merged from."""

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
        """Those beside the keys."""

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
