"""The documents of a place that follow from what was sent there, the index last.

Whoever pushes at the same time does the same: lists the commit records, writes the index, and lists
again. So the index that is written last lists all shards whose records were there before it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ....cache_schemas.contents import CacheIndex, TeacherIndex
from ....cache_schemas.errors import CacheError
from ....cache_schemas.layout import CACHE_INDEX, ZARR_METADATA, teacher_folder
from ..format.zarr_shards import array_metadata, group_metadata
from .collisions import refuse_other
from .listing import list_documents
from .origin import read_index
from .place import RemotePlace

NamedDocument = tuple[str, bytes]


def publish(place: RemotePlace, sent: Iterable[TeacherIndex]) -> CacheIndex:
    """Write runs, Zarr documents and the index of a place to which some teachers were sent.

    Raises CacheError if another push has put other shards where ours were."""
    ours = {teacher.manifest.fingerprint: teacher for teacher in sent}
    before, now = None, list_documents(place, read_index(place))
    for teacher in _both(now, ours):
        _write(place, run_documents(teacher, ours[teacher.manifest.fingerprint]))
    now = list_documents(place, now)
    while now != before:
        for teacher in _both(now, ours):
            _refuse_replaced(place, teacher, ours[teacher.manifest.fingerprint])
            _write(place, array_documents(teacher))
        _write(place, cache_documents(place, now))
        before, now = now, list_documents(place, now)
    return now


def _both(now: CacheIndex, ours: dict[str, TeacherIndex]) -> list[TeacherIndex]:
    return [teacher for teacher in now.teachers if teacher.manifest.fingerprint in ours]


def _write(place: RemotePlace, documents: Iterable[NamedDocument]) -> None:
    for name, data in documents:
        place.write(name, data)


def run_documents(there: TeacherIndex | None, ours: TeacherIndex) -> Iterator[NamedDocument]:
    """Runs that the place lacks, or knows with fewer shards: each side may have seconds of shards
    that the other lacks."""
    folder = teacher_folder(Path(), ours.manifest.fingerprint) / "runs"
    for run, record in ours.runs.items():
        known = there.runs.get(run) if there else None
        seconds = (known.teacher_seconds if known else {}) | record.teacher_seconds
        merged = record.model_copy(update={"teacher_seconds": dict(sorted(seconds.items()))})
        if merged != known:
            yield (folder / f"{run}.json").as_posix(), merged.to_json()


def _refuse_replaced(place: RemotePlace, there: TeacherIndex, ours: TeacherIndex) -> None:
    records = {record.shard: record for record in there.commits}
    for record in ours.commits:
        if record.shard not in records:
            raise CacheError(
                f"{place.shown}: shard {record.shard} of teacher {ours.manifest.fingerprint[:12]} "
                "was sent and is gone: another process removes what is there; push once more"
            )
        refuse_other("what was sent", record, place.shown, records[record.shard], ours.manifest)


def array_documents(teacher: TeacherIndex) -> Iterator[NamedDocument]:
    """The Zarr documents of a teacher with the commits it has there."""
    manifest = teacher.manifest
    folder = teacher_folder(Path(), manifest.fingerprint)
    last = teacher.commits[-1] if teacher.commits else None
    yield (folder / ZARR_METADATA).as_posix(), group_metadata()
    for spec in manifest.spec.features:
        name = (folder / spec.name / ZARR_METADATA).as_posix()
        rows = manifest.array_rows(spec, last)
        yield name, array_metadata(spec, rows, manifest.rows_per_shard)


def cache_documents(place: RemotePlace, index: CacheIndex) -> Iterator[NamedDocument]:
    """The documents of the cache as a whole, the index last. Raises CacheError if it is too large
    to be read."""
    for folder in ("", "teachers/"):
        yield folder + ZARR_METADATA, group_metadata()
    data = index.to_json()
    if len(data) > CacheIndex.max_bytes:
        raise CacheError(
            f"{place.where(CACHE_INDEX)}: would have {len(data)} bytes; at most "
            f"{CacheIndex.max_bytes} are read; push some teachers to another place"
        )
    yield CACHE_INDEX, data
