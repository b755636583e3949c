"""Whether a cache takes the answers of a teacher: known, new, or the same under other settings."""

import os
from collections.abc import Sequence
from pathlib import Path

from ....cache_schemas.errors import CacheError, OutputError, TeacherMismatchError
from ....cache_schemas.layout import (
    CACHE_MANIFEST,
    MIRROR,
    PARTIAL_SUFFIX,
    PULL_LOCK,
    TEACHER_MANIFEST,
    WRITER_LOCK,
    teacher_folder,
)
from ....cache_schemas.manifest import TeacherManifest
from ....cache_schemas.teachers import TeacherSpec, differ_in_features_alone, differences
from ..format.manifests import list_teachers, refuse_part


def check_teacher(
    path: Path,
    spec: TeacherSpec,
    rows_per_shard: int | None,
    add_teacher: bool,
    selecting: frozenset[str] = frozenset(),
) -> TeacherManifest | None:
    """What the cache at `path` knows of this teacher; None if it would be new there.

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


def check_rows_per_shard(known: TeacherManifest, asked: int | None) -> None:
    """Refuse another number of rows per shard than a cached teacher has."""
    if asked is not None and asked != known.rows_per_shard:
        raise CacheError(
            f"rows_per_shard: cached {known.rows_per_shard}, asked {asked}; it is fixed for a "
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
            "nothing more is written; run the same command again to have its answers again"
        )


def refuse_mirror(path: Path) -> None:
    """Raise CacheError if the folder fills itself from a cache elsewhere."""
    if (path / MIRROR).exists():
        raise CacheError(
            f"cache {path}: is a mirror of a cache elsewhere and fills itself; name another folder"
        )


def require_writable(path: Path) -> None:
    """Raise OutputError if nothing can be written to the cache at `path`, or made there; itself
    writes nothing."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cache {path}: {there} cannot be written; name another folder")


def is_new(path: Path) -> bool:
    """Whether nothing is there yet, or only what a writer or a pull left that died at its
    first file."""
    first = {WRITER_LOCK, PULL_LOCK, CACHE_MANIFEST + PARTIAL_SUFFIX}
    return not path.exists() or (
        path.is_dir() and all(file.name in first for file in path.iterdir())
    )
