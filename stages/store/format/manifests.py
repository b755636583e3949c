"""The documents of a cache, read from disk and checked against each other and the names of their
files.

Of a teacher that was pulled in part, `part.json` beside `teacher.json` lists missing features and
tables; where there is none, all are held. Every committed shard has all files of what is held, so
readers look no further. Commit records stay the origin's: they name files that are not here, and
their digest is the same.
"""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from ....cache_schemas.errors import CacheError, DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import (
    CACHE_MANIFEST,
    FINGERPRINT,
    TEACHER_MANIFEST,
    TEACHER_PART,
    commit_file,
    teacher_folder,
)
from ....cache_schemas.manifest import (
    CacheManifest,
    CommitRecord,
    PartRecord,
    TeacherManifest,
    check_cache_manifest,
)
from ....cache_schemas.teachers import distinctions
from ..files.plain_files import (
    check_folders,
    check_way,
    entries,
    is_there,
    read_bytes,
    read_document,
)


def check_cache(path: Path) -> CacheManifest:
    """The manifest of a cache; refuses anything but a cache of a readable version."""
    manifest = path / CACHE_MANIFEST
    check_way(manifest, path)
    if not manifest.is_file():
        if any(path.glob(f"teachers/*/{TEACHER_MANIFEST}")):
            raise DamagedCacheError(
                f"{manifest}: is missing, and teachers are there; `armada cache repair` writes it"
            )
        if not path.exists():
            raise CacheError(
                f"cache {path}: there is no such folder, and so it holds no {CACHE_MANIFEST}; this "
                "is not an armada cache; check the path, or make one with `armada precompute`"
            )
        if not path.is_dir():
            raise CacheError(
                f"cache {path}: is a file, and so it holds no {CACHE_MANIFEST}; this is not an "
                "armada cache; name the folder of one"
            )
        raise CacheError(
            f"cache {path}: holds no {CACHE_MANIFEST}; this is not an armada cache; "
            "name a folder that is one, or an empty one to make it there"
        )
    return check_cache_manifest(read_bytes(manifest, path, CacheManifest.max_bytes), manifest)


def list_teachers(path: Path) -> list[TeacherManifest]:
    """The teachers of a cache, sorted by fingerprint."""
    check_cache(path)
    check_way(path / "teachers", path)
    files = [folder / TEACHER_MANIFEST for folder in teacher_folders(path)]
    for file in files:
        check_folders(file, path)
    return [read_teacher(file, path) for file in files if is_there(file)]


def teacher_folders(path: Path) -> list[Path]:
    """The folders of a cache's teachers, sorted, and whatever else has the name of one.

    Raises as `entries`."""
    found = entries(path / "teachers")
    return [each for each in found if each.is_dir() or FINGERPRINT.fullmatch(each.name)]


def choose_teacher(
    path: Path | str,
    teachers: Sequence[TeacherManifest],
    prefix: str | None,
    empty: Container[str] = (),
) -> TeacherManifest:
    """The one of `teachers` that a prefix, or nothing at all, means: those that extend others, or
    were derived from them, do not count, nor those without a row, `empty`, unless one of them is
    all there is.

    Raises CacheError."""
    known = ", ".join(_shown(teachers))
    matches = [t for t in teachers if t.fingerprint.startswith(prefix or "")]
    there = {t.fingerprint for t in teachers}
    bases = [t for t in matches if there.isdisjoint({t.extends, t.spec.parent})]
    answered = [t for t in bases if t.fingerprint not in empty]
    for candidates in (matches, bases, answered):
        if len(candidates) == 1:
            return candidates[0]
    if not teachers:
        raise CacheError(
            f"cache {path}: no teacher has committed a shard yet; run `armada precompute`"
        )
    if prefix is None:
        raise CacheError(f"cache {path}: holds several teachers; choose one: {known}")
    problem = "is the prefix of several teachers" if matches else "is not in the cache"
    if ":" in prefix:
        problem = "is not a fingerprint; name one, or its first digits"
    raise CacheError(f"teacher {prefix!r}: {problem}; it holds {known}")


def _shown(teachers: Sequence[TeacherManifest]) -> Iterator[str]:
    apart = distinctions({t.fingerprint: t.spec for t in teachers})
    for teacher in teachers:
        names = (f"{teacher.spec.kind}:{teacher.spec.name}", apart[teacher.fingerprint])
        yield f"{teacher.fingerprint[:12]} ({', '.join(filter(None, names))})"


def read_teacher(file: Path, path: Path) -> TeacherManifest:
    """`teacher.json` in the cache at `path`; raises DamagedCacheError if it does not fit."""
    teacher = read_document(TeacherManifest, file, path)
    if teacher.fingerprint != file.parent.name:
        raise DamagedCacheError(
            f"{file}: is of teacher {teacher.fingerprint}; its folder has another name"
        )
    return teacher


def has_commits(path: Path, teacher: TeacherManifest) -> bool:
    """Whether a teacher of the cache at `path` has a shard."""
    return bool(entries(teacher_folder(path, teacher.fingerprint) / "commits", "*.json"))


def read_commits(path: Path, teacher: TeacherManifest) -> list[CommitRecord]:
    """The commit records of one teacher of the cache at `path`, in shard order."""
    folder = teacher_folder(path, teacher.fingerprint)
    return [read_commit(folder, file, teacher) for file in entries(folder / "commits", "*.json")]


def read_commit(folder: Path, file: Path, teacher: TeacherManifest) -> CommitRecord:
    """One commit record of a teacher's folder; raises DamagedCacheError if it does not fit."""
    record = read_document(CommitRecord, file, folder.parent.parent)
    if file != commit_file(folder, record.shard) or not fits(record, teacher):
        raise DamagedCacheError(
            f"{file}: shard {record.shard} of {record.rows} rows and features "
            f"{', '.join(record.features):.200} matches neither its name nor the teacher; "
            "recompute it"
        )
    return record


def fits(record: CommitRecord, teacher: TeacherManifest) -> bool:
    """Whether a shard can be one of this teacher's."""
    names = {feature.name for feature in teacher.spec.features}
    coded = {feature.name for feature in teacher.spec.features if feature.coding is not None}
    axes = teacher.spec.axes
    return (
        record.rows <= teacher.rows_per_shard
        and record.features.keys() == names
        and record.fidelity.keys() <= coded
        and record.lengths.keys() == axes.keys()
        and all(record.lengths[axis] <= record.rows * most for axis, most in axes.items())
    )


def read_part(cache: Path, fingerprint: str) -> PartRecord | None:
    """Missing parts of a teacher; None if there are none, or no such teacher."""
    file = teacher_folder(cache, fingerprint) / TEACHER_PART
    return read_document(PartRecord, file, cache) if file.exists() else None


def held_features(teacher: TeacherManifest, part: PartRecord | None) -> tuple[FeatureSpec, ...]:
    """The features whose files are here, in the order of the spec."""
    missing = part.missing_features if part else ()
    return tuple(feature for feature in teacher.spec.features if feature.name not in missing)


def first_own_shard(cache: Path, fingerprint: str) -> int:
    """The lowest number that a shard written here may have: lower ones are the origin's, whether
    they were pulled yet or not. Raises CacheError if nothing can be added here."""
    part = refuse_part(cache, fingerprint, "nothing can be added")
    return part.next_shard if part else 0


def refuse_part(cache: Path, fingerprint: str, purpose: str) -> PartRecord | None:
    """Result of `read_part`; raises CacheError if features or tables of a teacher are missing.

    `purpose` completes 'so ...', for example 'nothing can be added'."""
    part = read_part(cache, fingerprint)
    missing = (*part.missing_features, *part.missing_tables) if part else ()
    if missing:
        raise CacheError(
            f"cache {cache}: holds teacher {fingerprint[:12]} without {', '.join(missing):.200}, "
            f"so {purpose}; pull the rest first (`armada cache pull`, without --feature)"
        )
    return part
