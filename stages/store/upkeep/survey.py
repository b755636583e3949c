"""Survey of a cache: every document, read on its own.

Other readers stop at the first invalid document. Here it is noted as a `Damage`, and the rest is
read all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from ....cache_schemas.errors import CacheError, CacheVersionError, DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import (
    CACHE_MANIFEST,
    TEACHER_MANIFEST,
    TEACHER_PART,
    ZARR_METADATA,
    numbered,
    teacher_folder,
)
from ....cache_schemas.manifest import (
    CommitRecord,
    PartRecord,
    RunRecord,
    TeacherManifest,
    content_digest,
)
from ..files.plain_files import Stamp, check_folders, entries, folders_of, read_document, stamp_of
from ..format.manifests import (
    check_cache,
    held_features,
    read_commit,
    read_part,
    read_teacher,
    teacher_folders,
)
from ..format.zarr_shards import check_array, check_group
from ..writing.reservations import PATIENCE_S, Reservations
from ..writing.teacher_folder import uncommitted

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Kind = Literal["cache", "teacher", "folder", "shard", "zarr", "run"]
Subject = tuple[Kind, Path, int | None]
"""Subject of a document: teacher, path, shard."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was committed: a shard (its record or its files), a document, or
    a folder that is none.

    `teacher` is the name of its folder, empty for documents of the cache; `shard` is None for a
    document, and for a record that is not named as a shard's is."""

    kind: Kind
    teacher: str
    shard: int | None
    file: Path
    problems: tuple[str, ...]

    def __str__(self) -> str:
        where = f"teacher {self.teacher[:12]}" if self.teacher else ""
        where += f" shard {self.shard}" if self.shard is not None else ""
        return ": ".join([*([where] if where else []), "; ".join(self.problems)])


@dataclass(slots=True)
class Findings:
    """Damages of one folder, as they are found."""

    cache: Path
    teacher: str = ""
    damages: list[Damage] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The teacher's folder, or the cache's."""
        return teacher_folder(self.cache, self.teacher) if self.teacher else self.cache

    def attempt(
        self,
        subject: Subject,
        read: Callable[Arguments, Result],
        *given: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result | None:
        """Result of `read`; None, and one more damage, if it raises."""
        try:
            return read(*given, **named)
        except CacheVersionError:
            raise
        except (CacheError, DamagedCacheError) as error:
            kind, file, shard = subject
            # Files are named from the folder of the teacher or of the cache on.
            problem = str(error).removeprefix(f"{self.folder}/")
            self.damages.append(Damage(kind, self.teacher, shard, file, (problem,)))
            return None


@dataclass(frozen=True, slots=True)
class TeacherSurvey:
    """Readable documents of one teacher. `foreign` are features laid out by another tool, by their
    Zarr document; `leftovers` counts files without a commit record, `in_the_making` shards that
    writers have reserved."""

    folder: Path
    manifest: TeacherManifest | None
    part: PartRecord | None
    commits: tuple[CommitRecord, ...]
    runs: tuple[RunRecord, ...]
    foreign: tuple[str, ...]
    damages: tuple[Damage, ...]
    leftovers: int
    in_the_making: int


@dataclass(frozen=True, slots=True)
class CacheSurvey:
    """Readable documents of a cache; `stamps` show whether a file has changed since."""

    path: Path
    damages: tuple[Damage, ...]
    teachers: tuple[TeacherSurvey, ...]
    stamps: Mapping[Path, Stamp | None]

    @property
    def digest(self) -> str | None:
        """The digest of the content; None if a document that it is made of cannot be read."""
        of_teachers = (damage for teacher in self.teachers for damage in teacher.damages)
        kinds = {damage.kind for damage in (*self.damages, *of_teachers)}
        if kinds & {"teacher", "folder", "shard"}:
            return None
        return content_digest((t.folder.name, c) for t in self.teachers for c in t.commits)

    def chosen(self, prefix: str | None) -> tuple[TeacherSurvey, ...]:
        """The teachers whose folders' names begin so; raises CacheError if there are none."""
        found = tuple(t for t in self.teachers if t.folder.name.startswith(prefix or ""))
        if prefix is not None and not found:
            known = ", ".join(t.folder.name[:12] for t in self.teachers) or "none"
            raise CacheError(f"teacher {prefix!r}: is not in the cache {self.path}; it has {known}")
        return found


def survey_cache(path: Path) -> CacheSurvey:
    """Read all documents of the cache at `path`.

    Raises CacheError if it is none, CacheVersionError if it is of another format version."""
    found = Findings(path)
    above = path / "teachers"
    listed = found.attempt(("folder", above, None), teacher_folders, path)
    folders = listed or []
    if not folders:
        check_cache(path)
    stamps = {file: stamp_of(file) for folder in folders for file in folder.rglob("*")}
    found.attempt(("cache", path / CACHE_MANIFEST, None), check_cache, path)
    groups = [path / ZARR_METADATA] + ([above / ZARR_METADATA] if listed is not None else [])
    for group in groups:
        found.attempt(("zarr", group, None), check_group, group, path)
    teachers = tuple(survey_teacher(path, folder) for folder in folders)
    return CacheSurvey(path, tuple(found.damages), teachers, stamps)


def survey_teacher(cache: Path, folder: Path) -> TeacherSurvey:
    """Read all documents of one teacher; none, where something is no folder that should be one:
    then its own files are unknown."""
    found = Findings(cache, folder.name)
    for below in folders_of(folder):
        found.attempt(("folder", below, None), check_folders, below / "anything", cache)
    if found.damages:
        return TeacherSurvey(folder, None, None, (), (), (), tuple(found.damages), 0, 0)
    records = entries(folder / "commits", "*.json")
    manifest = _read_manifest(found, folder, len(records))
    subject: Subject = ("teacher", folder / TEACHER_PART, None)
    part = found.attempt(subject, read_part, cache, folder.name)
    if found.damages:
        manifest = None  # local features are unknown
    commits, foreign = [], []
    if manifest is not None:
        commits = _read_commits(found, folder, manifest, records)
        foreign = _check_zarr(found, folder, held_features(manifest, part), manifest, commits)
    runs = [
        found.attempt(("run", file, None), read_document, RunRecord, file, cache)
        for file in entries(folder / "runs", "*.json")
    ]
    living, _ = Reservations(folder, PATIENCE_S).judged()
    reserved = numbered(living)
    return TeacherSurvey(
        folder=folder,
        manifest=manifest,
        part=part,
        commits=tuple(commits),
        runs=tuple(run for run in runs if run is not None),
        foreign=tuple(foreign),
        damages=tuple(found.damages),
        leftovers=len(uncommitted(folder, numbered(records), reserved)),
        in_the_making=len(reserved),
    )


def _read_manifest(found: Findings, folder: Path, shards: int) -> TeacherManifest | None:
    file = folder / TEACHER_MANIFEST
    if not shards and not file.exists() and not file.is_symlink():
        return None  # a writer died at its first file, or somebody is removing the teacher
    return found.attempt(("teacher", file, None), _read_or_count, file, found.cache, shards)


def _read_or_count(file: Path, cache: Path, shards: int) -> TeacherManifest:
    try:
        return read_teacher(file, cache)
    except DamagedCacheError as error:
        raise DamagedCacheError(f"{error}; without it {shards} shards cannot be read") from error


def _read_commits(
    found: Findings, folder: Path, manifest: TeacherManifest, records: Sequence[Path]
) -> list[CommitRecord]:
    commits = []
    for file in records:
        subject: Subject = ("shard", file, next(iter(numbered([file])), None))
        commit = found.attempt(subject, read_commit, folder, file, manifest)
        commits += [commit] if commit is not None else []
    return commits


def _check_zarr(
    found: Findings,
    folder: Path,
    features: Sequence[FeatureSpec],
    manifest: TeacherManifest,
    commits: Sequence[CommitRecord],
) -> list[str]:
    """Returns the features that are laid out otherwise."""
    group = folder / ZARR_METADATA
    found.attempt(("zarr", group, None), check_group, group, found.cache)
    size = manifest.rows_per_shard
    last = commits[-1] if commits else None
    states = {}
    for spec in features:
        file = folder / spec.name / ZARR_METADATA
        subject: Subject = ("zarr", file, None)
        rows = manifest.array_rows(spec, last)
        states[spec.name] = found.attempt(subject, check_array, file, found.cache, spec, rows, size)
        if states[spec.name] == "foreign":
            found.attempt(subject, _refuse_layout, file)
    return [name for name, state in states.items() if state == "foreign"]


def _refuse_layout(file: Path) -> None:
    raise DamagedCacheError(
        f"{file}: has another row layout: another tool wrote it, or it is damaged"
    )
