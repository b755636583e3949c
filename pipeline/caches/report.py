"""What a cache holds, in words and numbers: `cache ls` and `cache inspect`."""

from dataclasses import dataclass
from pathlib import Path

from ...stages.store.manifests import list_teachers
from ...stages.store.reader import Cache, open_cache


@dataclass(frozen=True, slots=True)
class TeacherSummary:
    """One teacher of a cache."""

    fingerprint: str
    kind: str
    name: str
    features: dict[str, str]
    rows: int
    shards: int
    bytes: int
    teacher_seconds: float


def summarise(path: Path) -> list[TeacherSummary]:
    """All teachers of a cache."""
    return [_summary(Cache(path, teacher)) for teacher in list_teachers(path)]


def _summary(cache: Cache) -> TeacherSummary:
    spec = cache.teacher.spec
    return TeacherSummary(
        fingerprint=cache.teacher.fingerprint,
        kind=spec.kind,
        name=spec.name,
        features={f.name: f"{f.dtype}{list(f.shape)}" for f in spec.features},
        rows=len(cache),
        shards=len(cache.commits),
        bytes=_bytes(cache),
        teacher_seconds=sum(sum(run.teacher_seconds.values()) for run in cache.runs()),
    )


def _bytes(cache: Cache) -> int:
    return sum(
        file.bytes
        for commit in cache.commits
        for file in (*commit.features.values(), *commit.tables.values())
    )


def inspect(path: Path, teacher: str | None) -> dict[str, object]:
    """Everything known of one teacher of a cache, as a document."""
    cache = open_cache(path, teacher)
    summary = _summary(cache)
    return {
        "fingerprint": summary.fingerprint,
        "rows": summary.rows,
        "shards": summary.shards,
        "rows_per_shard": cache.teacher.rows_per_shard,
        "bytes": summary.bytes,
        "teacher_seconds": summary.teacher_seconds,
        "teacher": cache.teacher.spec.model_dump(mode="json"),
        "runs": [run.model_dump(mode="json") for run in cache.runs()],
    }
