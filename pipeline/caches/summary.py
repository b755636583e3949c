"""Contents of a cache in numbers: `cache ls` and `cache inspect`.

For a cache at a URL, its index has all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ...cache_schemas.manifest import CommitRecord, PartRecord, TeacherIndex, fidelity_of
from ...cache_schemas.teachers import distinctions
from ...stages.store.format.manifests import choose_teacher, held_features, read_part
from ...stages.store.reading.reader import Cache
from ...stages.store.transfer.index import read_origin
from ...stages.store.transfer.location import open_location


@dataclass(frozen=True, slots=True)
class TeacherSummary:
    """One teacher of a cache; `missing` are features and tables that were not pulled, `extends` is
    the teacher that its features were added to, if any; `apart` distinguishes it from others of its
    kind and name."""

    fingerprint: str
    extends: str | None
    kind: str
    name: str
    apart: str
    features: dict[str, str]
    missing: tuple[str, ...]
    rows: int
    shards: int
    bytes: int
    teacher_seconds: float
    request_cost: float
    """By the prices of the jobs, of a teacher behind a server."""


def summarise(location: str) -> list[TeacherSummary]:
    """All teachers of the cache at a path or URL."""
    teachers = read_origin(open_location(location)).teachers
    apart = distinctions({t.manifest.fingerprint: t.manifest.spec for t in teachers})
    return [_summary(teacher, apart[teacher.manifest.fingerprint]) for teacher in teachers]


def _summary(teacher: TeacherIndex, apart: str = "") -> TeacherSummary:
    spec, part = teacher.manifest.spec, teacher.part
    return TeacherSummary(
        fingerprint=teacher.manifest.fingerprint,
        extends=teacher.manifest.extends,
        kind=spec.kind,
        name=spec.name,
        apart=apart,
        features={f.name: f.shown for f in held_features(teacher.manifest, part)},
        missing=(*part.missing_features, *part.missing_tables) if part else (),
        rows=sum(commit.rows for commit in teacher.commits),
        shards=len(teacher.commits),
        bytes=_held_bytes(teacher.commits, part),
        teacher_seconds=sum(sum(run.teacher_seconds.values()) for run in teacher.runs.values()),
        request_cost=sum(run.requests.cost for run in teacher.runs.values() if run.requests),
    )


def committed_bytes(cache: Cache) -> int:
    """Bytes of all files that commit records name, of features and tables that are here."""
    return _held_bytes(cache.commits, read_part(cache.path, cache.teacher.fingerprint))


def _held_bytes(commits: Iterable[CommitRecord], part: PartRecord | None) -> int:
    missing_features = part.missing_features if part else ()
    missing_tables = part.missing_tables if part else ()
    return sum(
        sum(file.bytes for name, file in commit.features.items() if name not in missing_features)
        + sum(file.bytes for name, file in commit.tables.items() if name not in missing_tables)
        for commit in commits
    )


def inspect(location: str, prefix: str | None) -> dict[str, object]:
    """Everything known of one teacher of the cache at a path or URL, as a document."""
    opened = open_location(location)
    teachers = read_origin(opened).teachers
    manifests = [teacher.manifest for teacher in teachers]
    teacher = teachers[manifests.index(choose_teacher(opened.shown, manifests, prefix))]
    summary = _summary(teacher)
    return {
        "fingerprint": summary.fingerprint,
        "extends": summary.extends,
        "rows": summary.rows,
        "shards": summary.shards,
        "rows_per_shard": teacher.manifest.rows_per_shard,
        "bytes": summary.bytes,
        "missing": summary.missing,
        "fidelity": {
            name: measured.model_dump(mode="json", exclude_none=True)
            for name, measured in fidelity_of(teacher.commits).items()
        },
        "teacher_seconds": summary.teacher_seconds,
        "teacher": teacher.manifest.spec.model_dump(mode="json"),
        "runs": [run.model_dump(mode="json") for run in teacher.runs.values()],
    }
