"""The documents of a cache and of a teacher in it, made and brought up to date by its writers.

All but `create_cache` is called under the cache's lock. So a partial file outside of a reservation
has no living owner, and neither has a shard's file that is neither committed nor reserved.
"""

from collections.abc import Container, Mapping
from pathlib import Path

from ....cache_schemas.errors import CacheError, OutputError
from ....cache_schemas.layout import (
    CACHE_MANIFEST,
    TEACHER_MANIFEST,
    ZARR_METADATA,
    teacher_folder,
)
from ....cache_schemas.manifest import CacheManifest, CommitRecord, TeacherManifest
from ..files.lock import locked
from ..files.own_files import make_folder, remove_tree, write_file
from ..files.plain_files import check_teacher_folders, check_way, refuse_linked_folders
from ..format.manifests import check_cache, held_features, read_part, read_teacher
from ..format.zarr_shards import array_metadata, group_metadata, same_layout, stored_rows_per_shard
from .admission import check_rows_per_shard, is_new
from .removal import partial_documents, uncommitted


def create_cache(path: Path) -> None:
    """Make `path` a cache if nothing is there; refuse what is something else."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"cache {path}: is a file; name a folder")
    if not is_new(path):
        if not (path / CACHE_MANIFEST).exists():
            raise CacheError(f"cache {path}: is neither empty nor an armada cache")
        check_cache(path)
    make_folder(path, path)
    refuse_linked_folders(path / "teachers", path)
    with locked(path):
        for partial in partial_documents(path):
            remove_tree(partial, path)
        if not (path / CACHE_MANIFEST).exists():
            write_file(path / CACHE_MANIFEST, [CacheManifest().to_json()], path)
        for group in (path, path / "teachers"):
            _write_if_absent(group / ZARR_METADATA, group_metadata(), path)


def _write_if_absent(file: Path, content: bytes, cache: Path) -> None:
    if not file.exists():
        write_file(file, [content], cache)


def create_teacher(path: Path, manifest: TeacherManifest) -> None:
    """Make a teacher's folder; refuse one that was made with other rows per shard."""
    folder = teacher_folder(path, manifest.fingerprint)
    check_teacher_folders(folder, path)
    file = folder / TEACHER_MANIFEST
    if not file.exists():
        _refuse_other_shards(folder, manifest)
    _write_if_absent(folder / ZARR_METADATA, group_metadata(), path)
    _write_if_absent(file, manifest.to_json(), path)
    check_rows_per_shard(read_teacher(file, path), manifest.rows_per_shard)


def _refuse_other_shards(folder: Path, manifest: TeacherManifest) -> None:
    """A manifest that was lost has to come back as it was."""
    stored = stored_rows_per_shard(folder)
    if stored not in (None, manifest.rows_per_shard):
        raise CacheError(
            f"rows_per_shard: the shards in {folder} have {stored}, asked "
            f"{manifest.rows_per_shard}; their {TEACHER_MANIFEST} is lost; to have it written "
            f"again, say rows_per_shard={stored}"
        )


def bring_up_to_date(
    folder: Path,
    manifest: TeacherManifest,
    commits: Mapping[int, CommitRecord],
    reserved: Container[int],
) -> None:
    """Refuse a foreign layout; remove what dead writers left; count the committed rows in Zarr."""
    _refuse_foreign_layout(folder, manifest)
    for left in uncommitted(folder, commits, reserved):
        remove_tree(left, folder.parent.parent)
    write_zarr_metadata(folder, manifest, commits)


def _refuse_foreign_layout(folder: Path, manifest: TeacherManifest) -> None:
    """Before anything is removed: files of another layout have other names."""
    for spec in manifest.spec.features:
        path = folder / spec.name / ZARR_METADATA
        check_way(path, folder.parent.parent)
        ours = array_metadata(spec, 0, manifest.rows_per_shard)
        if path.is_file() and not same_layout(path.read_bytes(), ours):
            raise CacheError(
                f"{path}: another Zarr writer changed how the shards are laid out; they can "
                "be read, but not added to; precompute into a new folder"
            )


def write_zarr_metadata(
    folder: Path, manifest: TeacherManifest, commits: Mapping[int, CommitRecord]
) -> None:
    """Let the Zarr arrays of a teacher, of those features that are here, end with its last
    committed row."""
    last, cache = commits[max(commits)] if commits else None, folder.parent.parent
    part = read_part(cache, manifest.fingerprint)
    for spec in held_features(manifest, part):
        rows = manifest.array_rows(spec, last)
        metadata = array_metadata(spec, rows, manifest.rows_per_shard)
        path = folder / spec.name / ZARR_METADATA
        check_way(path, cache)
        if not path.is_file() or path.read_bytes() != metadata:
            write_file(path, [metadata], cache)
