"""What `cache push` and `cache pull` have in common: how to get there, and what to report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...cache_schemas.errors import CacheError, JobError
from ...cache_schemas.manifest import TeacherManifest
from ...stages.store.transfer.place import LocalPlace, Place
from ...stages.store.transfer.plan import TeacherPlan
from ...stages.store.transfer.pull import JOBS


@dataclass(frozen=True, slots=True)
class Transfer:
    """How to reach the other place. `options` are KEY=VALUE with YAML values, for fsspec."""

    options: Sequence[str] = ()
    jobs: int = JOBS
    dry_run: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class SharedTeacher:
    """What went over of one teacher: shards with something to send or fetch, those that needed
    nothing, files and bytes. `texts` counts texts of the corpus found with it, if one was given."""

    fingerprint: str
    kind: str
    name: str
    features: tuple[str, ...]
    shards: int
    already_there: int
    files: int
    bytes: int
    texts: int | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What a push or a pull did, or would do. `digest` names all that the other place holds, after
    a push what it holds now; `texts` counts the different texts of the corpus, if one was given."""

    place: str
    digest: str | None
    teachers: tuple[SharedTeacher, ...]
    seconds: float
    dry_run: bool = False
    texts: int | None = None
    skipped: tuple[str, ...] = ()


def arrived(plan: TeacherPlan) -> SharedTeacher:
    """The report of one teacher whose shards come to a local cache."""
    return shared_teacher(
        plan.origin.manifest,
        tuple(f.name for f in plan.origin.manifest.spec.features if f.name in plan.features),
        [len(shard.files) for shard in plan.shards],
        plan.there,
        plan.bytes,
        plan.found,
    )


def shared_teacher(
    manifest: TeacherManifest,
    features: tuple[str, ...],
    files: Sequence[int],
    already_there: int,
    total_bytes: int,
    texts: int | None = None,
) -> SharedTeacher:
    """The report of one teacher; `files` counts the files of each shard that went over."""
    return SharedTeacher(
        fingerprint=manifest.fingerprint,
        kind=manifest.spec.kind,
        name=manifest.spec.name,
        features=features,
        shards=len(files),
        already_there=already_there,
        files=sum(files),
        bytes=total_bytes,
        texts=texts,
    )


def storage_options(settings: Sequence[str]) -> dict[str, Any]:
    """Options for fsspec from KEY=VALUE texts. Their values may be secret: no error shows one."""
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise JobError("--storage-option: one is not KEY=VALUE")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise JobError(f"--storage-option {key}: the value is not YAML; quote it") from None
    return options


def refuse_itself(place: Place, cache: Path) -> None:
    """Raise CacheError if a local cache would be copied onto itself."""
    if isinstance(place, LocalPlace) and place.path.resolve() == cache.resolve():
        raise CacheError(f"cache {cache}: is at both ends; name another place")
