"""Index of a location: its `index.json`, or its documents one by one if there is none.

Locations are not trusted: every document is bounded in size, validated, and checked against the
others before it is used. A local folder is read as any local cache: its own documents are newer
than its index.

Names that a listing gives are used only if they are those of teachers, shards or runs. What was
read before is not read again, so an index is brought up to date with few requests.
"""

import json
import re
from collections.abc import Iterable
from typing import TypeVar

from ....cache_schemas.errors import CacheError, DamagedCacheError, StorageError
from ....cache_schemas.layout import (
    CACHE_INDEX,
    CACHE_MANIFEST,
    FINGERPRINT,
    TEACHER_MANIFEST,
    TEACHER_PART,
)
from ....cache_schemas.manifest import (
    CacheIndex,
    CacheManifest,
    CommitRecord,
    Document,
    PartRecord,
    RunRecord,
    TeacherIndex,
    TeacherManifest,
    check_cache_manifest,
    parse_document,
)
from ..format.manifests import fits
from ..reading.reader import check_digest, read_contents
from .remote import LocalLocation, Location, RefusedError, RemoteLocation, in_parallel

SHARD = re.compile(r"\d{6}", re.ASCII)
RUN = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}", re.ASCII)

READERS = 8
"""Documents that are read at once."""

DocumentT = TypeVar("DocumentT", bound=Document)


def read_origin(location: Location, digest: str | None = None) -> CacheIndex:
    """All documents of the cache at a location; raises CacheError if there is none, or if its
    digest is another than the given one."""
    index = (
        read_contents(location.path)
        if isinstance(location, LocalLocation)
        else _read_remote(location)
    )
    check_digest(location.shown, index.digest, digest)
    return index


def _read_remote(location: RemoteLocation) -> CacheIndex:
    location.renew()
    index = read_index(location)
    if index is None:
        index = list_documents(location)
        if not index.teachers:
            raise unlisted(location)
        _check(index, location.shown)
    return index


def read_index(location: RemoteLocation) -> CacheIndex | None:
    """`index.json` of a location, checked; None if it has none."""
    data = location.read(CACHE_INDEX, CacheIndex.max_bytes)
    return None if data is None else parse_index(data, location.where(CACHE_INDEX))


def parse_index(data: bytes, where: str) -> CacheIndex:
    """The index of a cache; raises CacheError or DamagedCacheError for anything else."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise DamagedCacheError(f"{where}: not JSON: {cause!s:.200}") from cause
    manifest = raw.get("cache") if isinstance(raw, dict) else None
    check_cache_manifest(json.dumps(manifest).encode(), where)
    index = parse_document(CacheIndex, data, where)
    _check(index, where)
    return index


def _check(index: CacheIndex, where: str) -> None:
    teachers = [teacher.manifest.fingerprint for teacher in index.teachers]
    if len(set(teachers)) < len(teachers):
        raise DamagedCacheError(f"{where}: lists a teacher twice")
    for teacher in index.teachers:
        shards = [record.shard for record in teacher.commits]
        if sorted(set(shards)) != shards:
            raise DamagedCacheError(
                f"{where}: teacher {teacher.manifest.fingerprint[:12]}: shards are not in order"
            )
        for record in teacher.commits:
            _require_fit(record, teacher.manifest, where)


def _require_fit(record: CommitRecord, teacher: TeacherManifest, where: str) -> None:
    if not fits(record, teacher):
        raise DamagedCacheError(
            f"{where}: shard {record.shard} of {record.rows} rows and features "
            f"{', '.join(record.features):.200} does not fit teacher {teacher.fingerprint[:12]}"
        )


def list_documents(location: RemoteLocation, known: CacheIndex | None = None) -> CacheIndex:
    """The documents of a location that can be listed, read one by one.

    Commit records in `known` are not read again: a record never changes. Raises CacheError if the
    location cannot be listed or is no cache."""
    data = location.read(CACHE_MANIFEST, CacheManifest.max_bytes)
    if data is None:
        raise CacheError(
            f"{location.shown}: holds neither {CACHE_INDEX} nor {CACHE_MANIFEST}; "
            "this is not an armada cache"
        )
    check_cache_manifest(data, location.where(CACHE_MANIFEST))
    return list_teachers(location, known)


def list_teachers(location: RemoteLocation, known: CacheIndex | None = None) -> CacheIndex:
    """The same for a location that may not have a cache manifest yet."""
    before = {t.manifest.fingerprint: t for t in (known.teachers if known else ())}
    found = [name for name in _names(location, "teachers") if FINGERPRINT.fullmatch(name)]
    teachers = [_list_teacher(location, name, before.get(name)) for name in found]
    return CacheIndex(teachers=tuple(teacher for teacher in teachers if teacher is not None))


def _names(location: RemoteLocation, folder: str) -> list[str]:
    try:
        return location.names(folder)
    except (StorageError, RefusedError) as cause:
        raise unlisted(location) from cause


def unlisted(location: RemoteLocation) -> CacheError:
    """The error for a location that is a cache but does not list its files."""
    return CacheError(
        f"{location.shown}: holds no {CACHE_INDEX} and its folders cannot be listed; create the "
        "index with `armada cache push` into the served folder"
    )


def _list_teacher(
    location: RemoteLocation, fingerprint: str, known: TeacherIndex | None
) -> TeacherIndex | None:
    folder = f"teachers/{fingerprint}"
    manifest = _read(location, f"{folder}/{TEACHER_MANIFEST}", TeacherManifest)
    if manifest is None:
        return None
    if manifest.fingerprint != fingerprint:
        raise DamagedCacheError(
            f"{location.where(folder)}: is of teacher {manifest.fingerprint}; it has another name"
        )
    return TeacherIndex(
        manifest=manifest,
        commits=_list_commits(location, folder, known.commits if known else ()),
        runs=_read_all(
            location, f"{folder}/runs", _named(location, f"{folder}/runs", RUN), RunRecord
        ),
        part=_read(location, f"{folder}/{TEACHER_PART}", PartRecord),
    )


def _list_commits(
    location: RemoteLocation, folder: str, known: Iterable[CommitRecord]
) -> tuple[CommitRecord, ...]:
    there = _named(location, f"{folder}/commits", SHARD)
    records = {f"{record.shard:06d}": record for record in known}
    new = _read_all(location, f"{folder}/commits", there - records.keys(), CommitRecord)
    for name, record in new.items():
        if record.shard != int(name):
            raise DamagedCacheError(
                f"{location.where(folder)}/commits/{name}.json: is of shard {record.shard}"
            )
    records |= new
    return tuple(records[name] for name in sorted(there & records.keys()))


def _named(location: RemoteLocation, folder: str, pattern: re.Pattern[str]) -> set[str]:
    """Names of documents, without `.json`; whatever else is listed is left alone."""
    names = {name.removesuffix(".json") for name in _names(location, folder) if ".json" in name}
    return {name for name in names if pattern.fullmatch(name)}


def _read_all(
    location: RemoteLocation, folder: str, names: Iterable[str], model: type[DocumentT]
) -> dict[str, DocumentT]:
    found: dict[str, DocumentT] = {}

    def read(name: str) -> None:
        document = _read(location, f"{folder}/{name}.json", model)
        if document is not None:
            found[name] = document

    in_parallel(READERS, read, sorted(names))
    return {name: found[name] for name in sorted(found)}


def _read(location: RemoteLocation, name: str, model: type[DocumentT]) -> DocumentT | None:
    data = location.read(name, model.max_bytes)
    return None if data is None else parse_document(model, data, location.where(name))
