"""Write a teacher's answers into a cache, shard by shard; nothing is visible before its commit.

A shard's feature and table files are written under temporary names, synced and renamed; then its
commit record is, and only that makes the rows readable. A process that dies at any moment leaves
whole shards and files that no commit record names; the next writer removes those. The Zarr shape
is brought up to date after each commit and when a writer opens.
"""

import fcntl
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.errors import CacheError, OutputError, TeacherMismatchError
from ...cache_schemas.keys import KeyArray, first_occurrences, keys_to_array
from ...cache_schemas.layout import (
    CACHE_MANIFEST,
    PARTIAL_SUFFIX,
    ROWS_TABLE,
    TEACHER_MANIFEST,
    WRITER_LOCK,
    ZARR_METADATA,
    commit_file,
    shard_file,
    table_file,
    teacher_folder,
)
from ...cache_schemas.manifest import CacheManifest, CommitRecord, RunRecord, TeacherManifest
from ...cache_schemas.teachers import TeacherSpec, differences
from .atomic import write_atomic
from .dense import array_metadata, group_metadata, same_layout, shard_parts
from .index import KeyIndex
from .manifests import list_teachers, read_commits
from .tables import read_keys, rows_table, table_bytes


def check_teacher(
    path: Path, spec: TeacherSpec, rows_per_shard: int | None, add_teacher: bool
) -> TeacherManifest | None:
    """What the cache at `path` knows of this teacher; None if it would be new there.

    Raises TeacherMismatchError, naming each differing field, if the cache holds the same model
    under other settings and `add_teacher` is not set; CacheError if `path` is something else."""
    if _is_new(path):
        return None
    for known in list_teachers(path):
        if known.fingerprint == spec.fingerprint:
            _check_rows_per_shard(known, rows_per_shard)
            return known
    if not add_teacher:
        _refuse_same_model(path, spec)
    return None


def _check_rows_per_shard(known: TeacherManifest, asked: int | None) -> None:
    if asked is not None and asked != known.rows_per_shard:
        raise CacheError(
            f"rows_per_shard: cached {known.rows_per_shard}, asked {asked}; it is fixed for a "
            "teacher of a cache; leave it out"
        )


def _refuse_same_model(path: Path, spec: TeacherSpec) -> None:
    for known in list_teachers(path):
        same_weights = bool(spec.weights) and known.spec.weights == spec.weights
        if known.spec.kind == spec.kind and (known.spec.name == spec.name or same_weights):
            raise TeacherMismatchError(
                f"cache {path} holds teacher {known.fingerprint[:12]} ({spec.kind}:{spec.name}) "
                f"under other settings: {'; '.join(differences(known.spec, spec))}; use the cached "
                "settings, or add_teacher=true to keep both"
            )


class CacheWriter:
    """The one writer of one teacher's folder; use as a context manager."""

    def __init__(self, path: Path, manifest: TeacherManifest) -> None:
        self.manifest = manifest
        self.folder = teacher_folder(path, manifest.fingerprint)
        _create(path, self.folder, manifest)
        self._lock = _lock(self.folder)
        try:
            self.commits = read_commits(path, manifest)
            self._refuse_foreign_layout()
            self._discard_uncommitted()
            self._write_zarr_metadata()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    @property
    def next_shard(self) -> int:
        """Number of the shard that the next commit makes."""
        return self.commits[-1].shard + 1 if self.commits else 0

    def pending(self, keys: KeyArray) -> npt.NDArray[np.int64]:
        """Positions, ascending, of the first appearance of each key that is not committed."""
        return pending(self.folder, self.commits, keys)

    def commit(
        self,
        keys: KeyArray,
        features: Mapping[str, npt.NDArray[Any]],
        truncated: npt.NDArray[np.bool_],
        tables: Mapping[str, pa.Table] | None = None,
    ) -> CommitRecord:
        """Make the answers to N examples durable and visible: keys [N, 16], features [N, *shape].

        Raises StorageError if the disk refuses; then nothing of this shard is visible."""
        assert 1 <= len(keys) <= self.manifest.rows_per_shard, len(keys)
        all_tables = {ROWS_TABLE: rows_table(keys, truncated), **(tables or {})}
        record = self._write_shard(self.next_shard, len(keys), features, all_tables)
        write_atomic(commit_file(self.folder, record.shard), [record.to_json()])
        self.commits.append(record)
        self._write_zarr_metadata()
        return record

    def record_run(self, run_id: str, record: RunRecord) -> None:
        """Write or replace the provenance record of a run."""
        write_atomic(self.folder / "runs" / f"{run_id}.json", [record.to_json()])

    def _write_shard(
        self,
        shard: int,
        rows: int,
        features: Mapping[str, npt.NDArray[Any]],
        tables: Mapping[str, pa.Table],
    ) -> CommitRecord:
        feature_files, table_files = {}, {}
        for spec in self.manifest.spec.features:
            values = features[spec.name]
            assert values.shape == (rows, *spec.shape), (spec.name, values.shape)
            path = shard_file(self.folder, spec.name, shard, len(spec.shape))
            parts = shard_parts(values, spec, self.manifest.rows_per_shard)
            feature_files[spec.name] = write_atomic(path, parts)
        for name, table in tables.items():
            path = table_file(self.folder, name, shard)
            table_files[name] = write_atomic(path, [table_bytes(table)])
        return CommitRecord(shard=shard, rows=rows, features=feature_files, tables=table_files)

    def _write_zarr_metadata(self) -> None:
        rows = 0
        if self.commits:
            last = self.commits[-1]
            rows = last.shard * self.manifest.rows_per_shard + last.rows
        for spec in self.manifest.spec.features:
            metadata = array_metadata(spec, rows, self.manifest.rows_per_shard)
            path = self.folder / spec.name / ZARR_METADATA
            if not path.is_file() or path.read_bytes() != metadata:
                write_atomic(path, [metadata])

    def _refuse_foreign_layout(self) -> None:
        """Before anything is removed: files of another layout have other names."""
        for spec in self.manifest.spec.features:
            path = self.folder / spec.name / ZARR_METADATA
            ours = array_metadata(spec, 0, self.manifest.rows_per_shard)
            if path.is_file() and not same_layout(path.read_bytes(), ours):
                raise CacheError(
                    f"{path}: another Zarr writer changed how the shards are laid out; they can "
                    "be read, but not added to; precompute into a new folder"
                )

    def _discard_uncommitted(self) -> None:
        """Remove what a dead writer left: partial files, and shards without a commit record."""
        committed = {commit.shard for commit in self.commits}
        for partial in self.folder.rglob(f"*{PARTIAL_SUFFIX}"):
            partial.unlink()
        for file in (*self.folder.glob("tables/*/*.parquet"), *self.folder.glob("*/c/*")):
            if file.stem.isdecimal() and int(file.stem) not in committed:
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def pending(folder: Path, commits: list[CommitRecord], keys: KeyArray) -> npt.NDArray[np.int64]:
    """Positions, ascending, of the first appearance of each key that no commit holds."""
    parts = [
        read_keys(table_file(folder, ROWS_TABLE, commit.shard), commit.rows) for commit in commits
    ]
    committed = KeyIndex(np.concatenate(parts) if parts else keys_to_array([]))
    first = first_occurrences(keys)
    return first[committed.find(keys[first]) < 0]


def _create(path: Path, folder: Path, manifest: TeacherManifest) -> None:
    if path.exists() and not path.is_dir():
        raise OutputError(f"cache {path}: is a file; name a folder")
    if not (path / CACHE_MANIFEST).exists():
        if not _is_new(path):
            raise CacheError(f"cache {path}: is neither empty nor an armada cache")
        write_atomic(path / CACHE_MANIFEST, [CacheManifest().to_json()])
    for group in (path, path / "teachers", folder):
        if not (group / ZARR_METADATA).exists():
            write_atomic(group / ZARR_METADATA, [group_metadata()])
    if not (folder / TEACHER_MANIFEST).exists():
        write_atomic(folder / TEACHER_MANIFEST, [manifest.to_json()])


def _is_new(path: Path) -> bool:
    """Whether nothing is there yet, or only what a writer left that died at its first file."""
    first = path / (CACHE_MANIFEST + PARTIAL_SUFFIX)
    return not path.exists() or (path.is_dir() and all(file == first for file in path.iterdir()))


def _lock(folder: Path) -> Any:
    # The kernel frees the lock when its process dies, so a killed writer never blocks the next.
    try:
        file = (folder / WRITER_LOCK).open("wb")
    except OSError as cause:
        raise OutputError(f"cache {folder}: cannot be written: {cause.strerror}") from cause
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        file.close()
        raise OutputError(
            f"cache {folder}: another process is writing this teacher's answers; wait for it"
        ) from cause
    return file
