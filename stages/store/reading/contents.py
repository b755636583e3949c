"""All documents of a local cache as one, and the digest that names its content."""

from pathlib import Path

from ....cache_schemas.contents import CacheIndex, TeacherIndex, content_digest
from ....cache_schemas.errors import CacheError
from ....cache_schemas.manifest import TeacherManifest
from ..format.manifests import list_teachers, read_commits, read_part
from .reader import Cache


def read_contents(path: Path) -> CacheIndex:
    """Every document of the cache at `path`; raises CacheError or DamagedCacheError."""
    return CacheIndex(teachers=tuple(_contents(path, teacher) for teacher in list_teachers(path)))


def _contents(path: Path, teacher: TeacherManifest) -> TeacherIndex:
    cache = Cache(path, teacher)
    return TeacherIndex(
        manifest=teacher,
        commits=tuple(cache.commits),
        runs=cache.runs_by_id(),
        part=read_part(path, teacher.fingerprint),
    )


def read_digest(path: Path) -> str:
    """The content digest of the cache at `path`."""
    return content_digest(
        (teacher.fingerprint, record)
        for teacher in list_teachers(path)
        for record in read_commits(path, teacher)
    )


def check_digest(shown: str, found: str, expected: str | None) -> None:
    """Raise CacheError unless a cache holds exactly what is expected, if anything is."""
    if expected is not None and found != expected:
        raise CacheError(f"cache {shown}: its digest is {found}, not {expected} as expected")
