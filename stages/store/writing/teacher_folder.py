"""A teacher's folder in a cache: whether the cache takes it, its documents, and its removal.

All but `create_cache` and what only reads is called under the cache's lock
(`../files/lock.py`). So a partial file outside of a reservation has no living owner, and neither
has a shard's file that is neither committed nor reserved.

Things are taken out so that at any moment readers see whole shards and whole teachers: what makes
a thing visible goes first and is gone from the disk before the rest is touched, a shard's commit
record, a teacher's `teacher.json`. No symbolic link is followed, so nothing outside of the cache
can be removed (`../files/own_files.py`).
"""

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from ....cache_schemas.errors import CacheError, OutputError, TeacherMismatchError
from ....cache_schemas.layout import (
    CACHE_MANIFEST,
    MIRROR,
    PARTIAL_SUFFIX,
    PULL_LOCK,
    TEACHER_MANIFEST,
    WRITER_LOCK,
    ZARR_METADATA,
    commit_file,
    teacher_folder,
)
from ....cache_schemas.manifest import CacheManifest, CommitRecord, TeacherManifest
from ....cache_schemas.teachers import (
    TeacherSpec,
    differ_in_features_alone,
    differences,
    without_settings,
)
from ..files.lock import locked, note_change
from ..files.own_files import make_folder, remove_file, remove_tree, write_file
from ..files.plain_files import check_teacher_folders, check_way, refuse_linked_folders
from ..format.manifests import (
    check_cache,
    held_features,
    list_teachers,
    read_part,
    read_teacher,
    refuse_part,
)
from ..format.zarr_shards import array_metadata, group_metadata, same_layout, stored_rows_per_shard


def check_teacher(
    path: Path,
    spec: TeacherSpec,
    rows_per_shard: int | None,
    add_teacher: bool,
    selecting: frozenset[str] = frozenset(),
) -> TeacherManifest | None:
    """The cached manifest of this teacher in `path`; None if it is new there.

    `selecting`: settings that only choose features. Raises TeacherMismatchError, naming each
    differing field, if the cache holds the same model under other settings and `add_teacher` is not
    set; CacheError if `path` is something else."""
    if is_new(path):
        return None
    refuse_mirror(path)
    # Listed once: another writer may add this very teacher at any moment.
    teachers = list_teachers(path)
    for known in teachers:
        if known.fingerprint == spec.fingerprint:
            check_rows_per_shard(known, rows_per_shard)
            refuse_part(path, known.fingerprint, "nothing can be added")
            return known
    if not add_teacher:
        _refuse_same_model(path, teachers, spec, selecting)
    return None


def begun_without(
    path: Path,
    spec: TeacherSpec,
    settings: frozenset[str],
    selecting: frozenset[str] = frozenset(),
) -> bool:
    """Whether the cache at `path` holds this teacher without these settings, which earlier releases
    did not have, and not with them; it may have other features, by `selecting`."""
    if is_new(path) or not settings:
        return False
    refuse_mirror(path)
    known = [each.spec for each in list_teachers(path)]
    before = spec.model_copy(update={"settings": without_settings(spec, settings)})
    then, now = (
        any(differ_in_features_alone(each, one, selecting) for each in known)
        for one in (before, spec)
    )
    return then and not now


def check_rows_per_shard(known: TeacherManifest, asked: int | None) -> None:
    """Refuse another number of rows per shard than a cached teacher has."""
    if asked is not None and asked != known.rows_per_shard:
        raise CacheError(
            f"rows_per_shard: cached {known.rows_per_shard}, requested {asked}; it is fixed for a "
            "teacher of a cache; leave it out"
        )


def _refuse_same_model(
    path: Path, teachers: Sequence[TeacherManifest], spec: TeacherSpec, selecting: frozenset[str]
) -> None:
    for known in teachers:
        if known.extends is not None:
            continue  # the teacher that it extends speaks for it
        same_weights = bool(spec.weights) and known.spec.weights == spec.weights
        if known.spec.kind == spec.kind and (known.spec.name == spec.name or same_weights):
            raise TeacherMismatchError(
                f"cache {path} holds teacher {known.fingerprint[:12]} ({spec.kind}:{spec.name}) "
                f"under other settings: {'; '.join(differences(known.spec, spec))}; use the cached "
                f"settings, {_to_extend(known.spec, spec, selecting)}"
                "or add_teacher=true to keep both"
            )


def _to_extend(known: TeacherSpec, asked: TeacherSpec, selecting: frozenset[str]) -> str:
    more = [spec.name for spec in asked.features if known.feature(spec.name) is None]
    if not more or not differ_in_features_alone(known, asked, selecting):
        return ""
    return f"add_features=true to add {', '.join(more)} to it, "


def refuse_removed(path: Path, teacher: TeacherManifest) -> None:
    """Raise OutputError if a teacher that was in the cache at `path` is no longer there."""
    if not (teacher_folder(path, teacher.fingerprint) / TEACHER_MANIFEST).is_file():
        raise OutputError(
            f"cache {path}: teacher {teacher.fingerprint[:12]} was removed by another process; "
            "nothing more is written; run the same command again to compute its features again"
        )


def refuse_mirror(path: Path) -> None:
    """Raise CacheError if the folder fills itself from a cache elsewhere."""
    if (path / MIRROR).exists():
        raise CacheError(f"cache {path}: is a mirror of a remote cache; name another folder")


def require_writable(path: Path) -> None:
    """Raise OutputError if nothing can be written to the cache at `path`, or made there; itself
    writes nothing."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cache {path}: {there} cannot be written; name another folder")


def is_new(path: Path) -> bool:
    """Whether nothing is there yet, or only what a writer or a pull left that died at its
    first file."""
    first = {WRITER_LOCK, PULL_LOCK, CACHE_MANIFEST + PARTIAL_SUFFIX}
    return not path.exists() or (
        path.is_dir() and all(file.name in first for file in path.iterdir())
    )


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
        manifest = path / CACHE_MANIFEST
        # What is added to an earlier version's cache has today's names: its readers must not guess.
        if not manifest.exists() or check_cache(path) != CacheManifest():
            write_file(manifest, [CacheManifest().to_json()], path)
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
            f"rows_per_shard: the shards in {folder} have {stored}, requested "
            f"{manifest.rows_per_shard}; their {TEACHER_MANIFEST} is lost; to rewrite it, set "
            f"rows_per_shard={stored}"
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


def drop_shard(cache: Path, fingerprint: str, shard: int) -> None:
    """Remove one shard, its commit record first; its keys are pending again.

    The Zarr shape is the caller's to bring up to date. Raises StorageError."""
    folder = teacher_folder(cache, fingerprint)
    remove_file(commit_file(folder, shard), cache)
    for path in shard_paths(folder, shard):
        remove_tree(path, cache)
    # After it, as a full disk takes no note; who dies before has only left keys to another run.
    note_change(cache, shard)


def shard_paths(teacher: Path, shard: int) -> list[Path]:
    """The files of one shard's tables and the folders of its features, those that are there."""
    return [*teacher.glob(f"tables/*/{shard:06d}.parquet"), *teacher.glob(f"*/c/{shard}")]


def drop_teacher(cache: Path, fingerprint: str) -> None:
    """Remove a teacher and all its features, `teacher.json` first. Raises StorageError."""
    folder = teacher_folder(cache, fingerprint)
    remove_file(folder / TEACHER_MANIFEST, cache)
    # Should we die on the way, what is left shall not look like a teacher that lost its manifest.
    remove_tree(folder / "commits", cache)
    remove_tree(folder, cache)
    note_change(cache)


def partial_documents(cache: Path) -> list[Path]:
    """Partial documents of the cache left by dead writers, sorted."""
    return sorted(
        partial
        for folder in (cache, cache / "teachers")
        for partial in folder.glob(f"*{PARTIAL_SUFFIX}")
    )


def uncommitted(teacher: Path, *kept: Container[int]) -> list[Path]:
    """Files left by dead writers in a teacher's folder, sorted: partial files, and files of shards
    whose numbers none of `kept` has: those that are committed, those that are reserved.
    Reservations are not looked into."""
    inside = teacher / "reservations"
    paths = {path for path in teacher.rglob(f"*{PARTIAL_SUFFIX}") if inside not in path.parents}
    for path in (*teacher.glob("tables/*/*.parquet"), *teacher.glob("*/c/*")):
        number = int(path.stem) if path.stem.isdecimal() else None
        if number is not None and not any(number in numbers for numbers in kept):
            paths.add(path)
    return sorted(paths)
