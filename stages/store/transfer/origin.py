"""What a place holds: its `index.json`, or its documents one by one where there is none.

A place is a stranger: every document is bounded in size, validated, and checked against the others
before anything is made of it. A local folder is read as any local cache: its own documents are
newer than its index.
"""

import json

from ....cache_schemas.contents import CacheIndex
from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.layout import CACHE_INDEX
from ....cache_schemas.manifest import (
    CommitRecord,
    TeacherManifest,
    check_cache_manifest,
    parse_document,
)
from ..format.manifests import fits
from ..reading.reader import check_digest, read_contents
from .listing import list_documents, unlisted
from .place import LocalPlace, Place, RemotePlace


def read_origin(place: Place, digest: str | None = None) -> CacheIndex:
    """All documents of the cache at a place; raises CacheError if there is none, or if its digest
    is another than the given one."""
    index = read_contents(place.path) if isinstance(place, LocalPlace) else _read_remote(place)
    check_digest(place.shown, index.digest, digest)
    return index


def _read_remote(place: RemotePlace) -> CacheIndex:
    place.renew()
    index = read_index(place)
    if index is None:
        index = list_documents(place)
        if not index.teachers:
            raise unlisted(place)
        _check(index, place.shown)
    return index


def read_index(place: RemotePlace) -> CacheIndex | None:
    """`index.json` of a place, checked; None if it has none."""
    data = place.read(CACHE_INDEX, CacheIndex.max_bytes)
    return None if data is None else parse_index(data, place.where(CACHE_INDEX))


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
