"""Send shards of a local cache to a place; a cut push goes on where it was.

    claim      armada.json and teacher.json, so that the size of shards is settled
    shards     in parallel: data and table files, then the commit record
    publish    Zarr documents, runs, and at the very end index.json in one write

Readers of the place see what index.json lists, so the last write is the commit. It lists what the
commit records there say, whoever sent them. Whoever pushes at the same time does the same: lists
the records, writes the index, and lists again; so the index that is written last lists all shards
whose records were there before it. Source files are checked against their records before they
leave, so damage is not passed on.

What is pushed to a folder of this machine is an ordinary cache there, with an index. The page about
a cache and its pictures go along: for people, no content.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ....cache_schemas.errors import CacheError
from ....cache_schemas.layout import (
    CACHE_INDEX,
    CACHE_MANIFEST,
    TEACHER_MANIFEST,
    ZARR_METADATA,
    commit_file,
    teacher_folder,
)
from ....cache_schemas.manifest import CacheIndex, CacheManifest, CommitRecord, TeacherIndex
from ..files.lock import locked
from ..files.own_files import write_file
from ..files.plain_files import check_file
from ..format.zarr_shards import array_metadata, group_metadata
from ..reading.reader import read_contents
from .arrivals import ShardFile, refuse_other, refuse_other_sizes, shard_files
from .index import list_documents, list_teachers, read_index
from .place import Advance, LocalPlace, Place, RemotePlace, in_parallel
from .pull import PullPlan, pull


@dataclass(frozen=True, slots=True)
class ShardToSend:
    """Files of one shard that are to be sent, and its commit record after them."""

    record: CommitRecord
    files: tuple[ShardFile, ...]


@dataclass(frozen=True, slots=True)
class TeacherToSend:
    """What is to be sent of one teacher; `there` counts shards that the place has, `new` says that
    it has not even heard of the teacher."""

    source: TeacherIndex
    shards: tuple[ShardToSend, ...]
    there: int
    new: bool

    @property
    def bytes(self) -> int:
        """Bytes to send."""
        return sum(file.record.bytes for shard in self.shards for file in shard.files)


def plan_push(
    cache: Path, teachers: tuple[TeacherIndex, ...], place: RemotePlace
) -> list[TeacherToSend]:
    """What of some teachers of a local cache a place lacks; writes nothing.

    Raises CacheError if the place is something else, or holds other shards of the same numbers."""
    there = known_documents(place)
    known = {teacher.manifest.fingerprint: teacher for teacher in there.teachers}
    return [
        _plan(cache, source, place, known.get(source.manifest.fingerprint)) for source in teachers
    ]


def known_documents(place: RemotePlace) -> CacheIndex:
    """What a place holds that is an armada cache, becomes one, or is empty; else CacheError."""
    if place.is_new():
        return CacheIndex(teachers=())
    names = place.names("")
    if CACHE_MANIFEST in names:
        return list_documents(place, read_index(place))
    others = [name for name in names if name not in place.housekeeping]
    if others:
        raise CacheError(
            f"{place.shown}: is neither empty nor an armada cache (it holds {others[0]:.80}); "
            f"name another place, or a folder in it: {place.shown}/cache"
        )
    return list_teachers(place) if names else CacheIndex(teachers=())


def _plan(
    cache: Path, source: TeacherIndex, place: RemotePlace, there: TeacherIndex | None
) -> TeacherToSend:
    _refuse_part(str(cache), source)
    if there is None:
        shards = [_shard(source, record) for record in source.commits]
        return TeacherToSend(source, tuple(shards), 0, new=True)
    _refuse_part(place.shown, there)
    refuse_other_sizes(str(cache), source.manifest, place.shown, there.manifest)
    records = {record.shard: record for record in there.commits}
    sizes = place.sizes(f"teachers/{source.manifest.fingerprint}")
    shards = []
    for record in source.commits:
        plan = _shard(source, record)
        if record.shard in records:
            refuse_other(str(cache), record, place.shown, records[record.shard], source.manifest)
            missing = (file for file in plan.files if sizes.get(file.name) != file.record.bytes)
            plan = ShardToSend(record, tuple(missing))
            if not plan.files:
                continue
        shards.append(plan)
    return TeacherToSend(source, tuple(shards), len(source.commits) - len(shards), new=False)


def _shard(source: TeacherIndex, record: CommitRecord) -> ShardToSend:
    return ShardToSend(record, tuple(shard_files(source.manifest, record)))


def _refuse_part(shown: str, teacher: TeacherIndex) -> None:
    part = teacher.part
    missing = (*part.missing_features, *part.missing_tables) if part else ()
    if missing:
        raise CacheError(
            f"cache {shown}: holds teacher {teacher.manifest.fingerprint[:12]} without "
            f"{', '.join(missing):.200}; only whole shards are pushed; pull the rest first"
        )


def push(
    cache: Path, plans: list[TeacherToSend], place: RemotePlace, jobs: int, advance: Advance
) -> CacheIndex:
    """Do what plans say; returns the index of the place as it is then.

    Raises DamagedCacheError for a source file that is not as committed, StorageError if the place
    fails; what was sent stays, and the next push goes on from there."""
    place.write(CACHE_MANIFEST, CacheManifest().to_json())
    for plan in plans:
        _send(cache, plan, place, jobs, advance)
    return publish(place, [plan.source for plan in plans])


def _send(
    cache: Path, plan: TeacherToSend, place: RemotePlace, jobs: int, advance: Advance
) -> None:
    manifest = plan.source.manifest
    folder = teacher_folder(Path(), manifest.fingerprint)
    if plan.new:
        place.write((folder / TEACHER_MANIFEST).as_posix(), manifest.to_json())

    def send(shard: ShardToSend) -> None:
        for file in shard.files:
            check_file(cache / file.name, cache, file.record)
            place.upload(cache / file.name, file.name)
        place.write(commit_file(folder, shard.record.shard).as_posix(), shard.record.to_json())
        advance(sum(file.record.bytes for file in shard.files))

    in_parallel(jobs, send, plan.shards)


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


def push_to_folder(
    source: LocalPlace, target: Path, plan: PullPlan, jobs: int, advance: Advance
) -> CacheIndex:
    """Do what a plan says as a pull does it, then write the index of the target; returns it."""
    pull(source, target, plan, jobs, advance)
    with locked(target):
        index = read_contents(target)
        write_file(target / CACHE_INDEX, [index.to_json()], target)
    return index


PAGE, PICTURES = "README.md", "features-*.png"
_MAX_BYTES = 2**24


def send_page(cache: Path, place: Place, mark: str) -> None:
    """Send the files of `page_files`."""
    for path in page_files(cache, place, mark):
        _write_page(place, path.name, path.read_bytes())


def page_files(cache: Path, place: Place, mark: str) -> list[Path]:
    """The page of a cache and its pictures, if it has one; none if the place has a page without
    `mark`, which somebody wrote there."""
    files = [path for path in (cache / PAGE, *sorted(cache.glob(PICTURES))) if _is_plain(path)]
    if files[:1] != [cache / PAGE]:
        return []
    theirs = _read_page(place)
    return files if theirs is None or mark.encode() in theirs else []


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _read_page(place: Place) -> bytes | None:
    if not isinstance(place, LocalPlace):
        return place.read(PAGE, _MAX_BYTES)
    path = place.path / PAGE
    return path.read_bytes() if path.exists() else None


def _write_page(place: Place, name: str, data: bytes) -> None:
    if isinstance(place, LocalPlace):
        with locked(place.path):
            write_file(place.path / name, [data], place.path)
    else:
        place.write(name, data)
