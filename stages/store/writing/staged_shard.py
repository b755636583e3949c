"""One shard on its way: written and synced in its reservation's folder, then moved into place.

A file is on its way to the disk (fsync, in a thread) while it is hashed and the next is written.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ....cache_schemas.codings import Fidelity
from ....cache_schemas.errors import ReservationLostError
from ....cache_schemas.keys import IntArray, KeyArray
from ....cache_schemas.layout import ROWS_TABLE, commit_file, shard_file, table_file
from ....cache_schemas.manifest import CommitRecord, FileRecord, TeacherManifest
from ....cache_schemas.teachers import TeacherSpec
from ...ragged import Ragged
from ..files.atomic import Buffer, file_record, open_new, storage_error, sync_file, sync_folder
from ..files.lock import note_change
from ..files.own_files import move_file, remove_file, remove_tree
from ..format.tables import rows_table, table_bytes
from ..format.zarr_shards import shard_parts
from .reservations import Reservation
from .teacher_folder import shard_paths

Values = npt.NDArray[Any] | Ragged
"""A feature of N examples: [N, *shape], or ragged where it lies along an axis."""

_SYNCS_AT_ONCE = 4


class StagedShard:
    """The files of one shard, first here, then there. Not visible before its commit record."""

    def __init__(self, teacher: Path, manifest: TeacherManifest, reservation: Reservation) -> None:
        self._teacher, self._manifest = teacher, manifest
        self._cache = teacher.parent.parent
        self._shard, self._staging = reservation.shard, reservation.staging
        self._moves: list[tuple[Path, Path]] = []
        self._moved: list[Path] = []
        self._syncs: list[tuple[Path, Future[None]]] = []

    def write(
        self,
        keys: KeyArray,
        truncated: npt.NDArray[np.bool_],
        features: Mapping[str, Values],
        tables: Mapping[str, pa.Table],
        fidelity: Mapping[str, Fidelity],
    ) -> CommitRecord:
        """Write and sync all files, the commit record among them."""
        lengths = _lengths(self._manifest.spec, len(keys), features)
        all_tables = {ROWS_TABLE: rows_table(keys, truncated, lengths), **tables}
        with ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix="sync") as pool:
            files = self._stage_files(pool, features, all_tables)
            record = CommitRecord(
                shard=self._shard,
                rows=len(keys),
                features=files[0],
                tables=files[1],
                lengths={axis: int(each.sum()) for axis, each in lengths.items()},
                fidelity=dict(fidelity),
            )
            self._stage(pool, commit_file(self._teacher, self._shard), [record.to_json()])
        for target, sync in self._syncs:
            try:
                sync.result()
            except OSError as cause:
                raise self._error(target, cause) from cause
        return record

    def _stage_files(
        self,
        pool: ThreadPoolExecutor,
        features: Mapping[str, Values],
        tables: Mapping[str, pa.Table],
    ) -> tuple[dict[str, FileRecord], dict[str, FileRecord]]:
        feature_files, table_files = {}, {}
        for spec in self._manifest.spec.features:
            values = _values(features[spec.name])
            assert values.shape[1:] == spec.shape, (spec.name, values.shape)
            path = shard_file(self._teacher, spec.name, self._shard, len(spec.shape))
            parts = shard_parts(values, spec, self._manifest.rows_per_shard)
            feature_files[spec.name] = self._stage(pool, path, parts)
        for name, table in tables.items():
            path = table_file(self._teacher, name, self._shard)
            table_files[name] = self._stage(pool, path, [table_bytes(table)])
        return feature_files, table_files

    def _stage(self, pool: ThreadPoolExecutor, target: Path, parts: Iterable[Buffer]) -> FileRecord:
        staged = self._staging.workplace / f"file-{len(self._moves)}"
        self._moves.append((staged, target))
        whole = list(parts)
        try:
            with open_new(staged) as file:
                file.writelines(whole)
        except OSError as cause:
            raise self._error(target, cause) from cause
        self._syncs.append((target, pool.submit(sync_file, staged)))
        return file_record(whole)

    def move_into_place(self) -> None:
        """Called under the cache's lock. The commit record moves when all else is on the disk."""
        *files, record = self._moves
        try:
            self._clear_the_place()
            self._move(files)
            note_change(self._cache, self._shard)
            self._move([record])
        except BaseException:
            self._take_back()
            raise

    def _clear_the_place(self) -> None:
        """A dead writer may have left files under this number, of tables that we have not."""
        if not self._staging.is_ours():  # then the number, and what is there, are another's
            raise self._lost(commit_file(self._teacher, self._shard))
        for path in shard_paths(self._teacher, self._shard):
            remove_tree(path, self._cache)

    def _move(self, moves: Iterable[tuple[Path, Path]]) -> None:
        folders: set[Path] = set()
        for staged, target in moves:
            try:
                folders |= move_file(staged, target, self._cache)
                self._moved.append(target)
            except OSError as cause:
                raise self._error(target, cause) from cause
        for folder in sorted(folders):
            try:
                sync_folder(folder)
            except OSError as cause:
                raise storage_error(folder, cause) from cause

    def _take_back(self) -> None:
        """Nothing may stay behind of a shard without a commit record."""
        if not commit_file(self._teacher, self._shard).exists():
            for target in self._moved:
                remove_file(target, self._cache)

    def _error(self, target: Path, cause: OSError) -> Exception:
        return storage_error(target, cause) if self._staging.is_ours() else self._lost(target)

    def _lost(self, target: Path) -> ReservationLostError:
        return ReservationLostError(
            f"{target}: another writer took this process for dead and continued its shard; is the "
            "machine overloaded, or was it suspended?"
        )


def _lengths(spec: TeacherSpec, rows: int, features: Mapping[str, Values]) -> dict[str, IntArray]:
    """The length of each example along each axis, as the features along it agree."""
    lengths: dict[str, IntArray] = {}
    for feature in spec.features:
        values = features[feature.name]
        assert isinstance(values, Ragged) == (feature.axis is not None), feature.name
        assert len(values) == rows, (feature.name, len(values), rows)
        if isinstance(values, Ragged) and feature.axis is not None:
            same = lengths.setdefault(feature.axis, values.lengths)
            assert np.array_equal(same, values.lengths), feature.name
            assert values.lengths.max(initial=0) <= (feature.max_length or 0), feature.name
            assert values.lengths.sum() == len(values.values), feature.name
    return lengths


def _values(values: Values) -> npt.NDArray[Any]:
    return values.values if isinstance(values, Ragged) else values
