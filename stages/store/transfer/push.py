"""Send shards of a local cache to a location; an interrupted push continues where it stopped.

    claim      armada.json and teacher.json, so that the size of shards is settled
    shards     in parallel: data and table files, then the commit record
    publish    Zarr documents, runs, and at the very end index.json in one write

Readers of the location see what index.json lists, so the last write is the commit. It lists the
commit records there, of all writers. Whoever pushes at the same time does the same: lists the
records, writes the index, and lists again; so the index that is written last lists all shards whose
records were there before it. Source files are checked against their records before they leave, so
damage is not passed on.

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
from .pull import PullPlan, pull
from .remote import Advance, LocalLocation, Location, RemoteLocation, in_parallel


@dataclass(frozen=True, slots=True)
class ShardToSend:
    """Files of one shard that are to be sent, and its commit record after them."""

    record: CommitRecord
    files: tuple[ShardFile, ...]


@dataclass(frozen=True, slots=True)
class TeacherToSend:
    """Planned upload of one teacher; `there` counts shards that the location has, `new` is true if
    it does not know the teacher."""

    source: TeacherIndex
    shards: tuple[ShardToSend, ...]
    there: int
    new: bool

    @property
    def bytes(self) -> int:
        """Bytes to send."""
        return sum(file.record.bytes for shard in self.shards for file in shard.files)


def plan_push(
    cache: Path, teachers: tuple[TeacherIndex, ...], location: RemoteLocation
) -> list[TeacherToSend]:
    """Plan an upload of what a location lacks; writes nothing.

    Raises CacheError if the location holds something else, or other shards of the same numbers."""
    there = known_documents(location)
    known = {teacher.manifest.fingerprint: teacher for teacher in there.teachers}
    return [
        _plan(cache, source, location, known.get(source.manifest.fingerprint))
        for source in teachers
    ]


def known_documents(location: RemoteLocation) -> CacheIndex:
    """Documents of a location that is an armada cache or empty; else CacheError."""
    if location.is_new():
        return CacheIndex(teachers=())
    names = location.names("")
    if CACHE_MANIFEST in names:
        return list_documents(location, read_index(location))
    others = [name for name in names if name not in location.housekeeping]
    if others:
        raise CacheError(
            f"{location.shown}: is neither empty nor an armada cache (it holds {others[0]:.80}); "
            f"name another location, or a folder in it: {location.shown}/cache"
        )
    return list_teachers(location) if names else CacheIndex(teachers=())


def _plan(
    cache: Path, source: TeacherIndex, location: RemoteLocation, there: TeacherIndex | None
) -> TeacherToSend:
    _refuse_part(str(cache), source)
    if there is None:
        shards = [_shard(source, record) for record in source.commits]
        return TeacherToSend(source, tuple(shards), 0, new=True)
    _refuse_part(location.shown, there)
    refuse_other_sizes(str(cache), source.manifest, location.shown, there.manifest)
    records = {record.shard: record for record in there.commits}
    sizes = location.sizes(f"teachers/{source.manifest.fingerprint}")
    shards = []
    for record in source.commits:
        plan = _shard(source, record)
        if record.shard in records:
            refuse_other(str(cache), record, location.shown, records[record.shard], source.manifest)
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
    cache: Path, plans: list[TeacherToSend], location: RemoteLocation, jobs: int, advance: Advance
) -> CacheIndex:
    """Carry out plans; returns the index of the location as it is then.

    Raises DamagedCacheError for a source file that is not as committed, StorageError if the
    location fails; sent files stay, and the next push continues."""
    location.write(CACHE_MANIFEST, CacheManifest().to_json())
    for plan in plans:
        _send(cache, plan, location, jobs, advance)
    return publish(location, [plan.source for plan in plans])


def _send(
    cache: Path, plan: TeacherToSend, location: RemoteLocation, jobs: int, advance: Advance
) -> None:
    manifest = plan.source.manifest
    folder = teacher_folder(Path(), manifest.fingerprint)
    if plan.new:
        location.write((folder / TEACHER_MANIFEST).as_posix(), manifest.to_json())

    def send(shard: ShardToSend) -> None:
        for file in shard.files:
            check_file(cache / file.name, cache, file.record)
            location.upload(cache / file.name, file.name)
        location.write(commit_file(folder, shard.record.shard).as_posix(), shard.record.to_json())
        advance(sum(file.record.bytes for file in shard.files))

    in_parallel(jobs, send, plan.shards)


NamedDocument = tuple[str, bytes]


def publish(location: RemoteLocation, sent: Iterable[TeacherIndex]) -> CacheIndex:
    """Write runs, Zarr documents and the index of a location to which some teachers were sent.

    Raises CacheError if another push has put other shards where ours were."""
    ours = {teacher.manifest.fingerprint: teacher for teacher in sent}
    before, now = None, list_documents(location, read_index(location))
    for teacher in _both(now, ours):
        _write(location, run_documents(teacher, ours[teacher.manifest.fingerprint]))
    now = list_documents(location, now)
    while now != before:
        for teacher in _both(now, ours):
            _refuse_replaced(location, teacher, ours[teacher.manifest.fingerprint])
            _write(location, array_documents(teacher))
        _write(location, cache_documents(location, now))
        before, now = now, list_documents(location, now)
    return now


def _both(now: CacheIndex, ours: dict[str, TeacherIndex]) -> list[TeacherIndex]:
    return [teacher for teacher in now.teachers if teacher.manifest.fingerprint in ours]


def _write(location: RemoteLocation, documents: Iterable[NamedDocument]) -> None:
    for name, data in documents:
        location.write(name, data)


def run_documents(there: TeacherIndex | None, ours: TeacherIndex) -> Iterator[NamedDocument]:
    """Runs that the location lacks, or knows with fewer shards: each side may have seconds of
    shards that the other lacks."""
    folder = teacher_folder(Path(), ours.manifest.fingerprint) / "runs"
    for run, record in ours.runs.items():
        known = there.runs.get(run) if there else None
        seconds = (known.teacher_seconds if known else {}) | record.teacher_seconds
        merged = record.model_copy(update={"teacher_seconds": dict(sorted(seconds.items()))})
        if merged != known:
            yield (folder / f"{run}.json").as_posix(), merged.to_json()


def _refuse_replaced(location: RemoteLocation, there: TeacherIndex, ours: TeacherIndex) -> None:
    records = {record.shard: record for record in there.commits}
    for record in ours.commits:
        if record.shard not in records:
            raise CacheError(
                f"{location.shown}: shard {record.shard} of teacher "
                f"{ours.manifest.fingerprint[:12]} was sent but is gone: another process removes "
                "files there; push again"
            )
        refuse_other("what was sent", record, location.shown, records[record.shard], ours.manifest)


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


def cache_documents(location: RemoteLocation, index: CacheIndex) -> Iterator[NamedDocument]:
    """The documents of the cache as a whole, the index last. Raises CacheError if it is too large
    to be read."""
    for folder in ("", "teachers/"):
        yield folder + ZARR_METADATA, group_metadata()
    data = index.to_json()
    if len(data) > CacheIndex.max_bytes:
        raise CacheError(
            f"{location.where(CACHE_INDEX)}: would have {len(data)} bytes; at most "
            f"{CacheIndex.max_bytes} are read; push some teachers to another location"
        )
    yield CACHE_INDEX, data


def push_to_folder(
    source: LocalLocation, target: Path, plan: PullPlan, jobs: int, advance: Advance
) -> CacheIndex:
    """Carry out a plan as a pull does, then write the index of the target; returns it."""
    pull(source, target, plan, jobs, advance)
    with locked(target):
        index = read_contents(target)
        write_file(target / CACHE_INDEX, [index.to_json()], target)
    return index


PAGE, PICTURES = "README.md", "features-*.png"
_MAX_BYTES = 2**24


def send_page(cache: Path, location: Location, mark: str) -> None:
    """Send the files of `page_files`."""
    for path in page_files(cache, location, mark):
        _write_page(location, path.name, path.read_bytes())


def page_files(cache: Path, location: Location, mark: str) -> list[Path]:
    """The page of a cache and its pictures, if it has one; none if the location has a page without
    `mark`, which somebody wrote there."""
    files = [path for path in (cache / PAGE, *sorted(cache.glob(PICTURES))) if _is_plain(path)]
    if files[:1] != [cache / PAGE]:
        return []
    theirs = _read_page(location)
    return files if theirs is None or mark.encode() in theirs else []


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _read_page(location: Location) -> bytes | None:
    if not isinstance(location, LocalLocation):
        return location.read(PAGE, _MAX_BYTES)
    path = location.path / PAGE
    return path.read_bytes() if path.exists() else None


def _write_page(location: Location, name: str, data: bytes) -> None:
    if isinstance(location, LocalLocation):
        with locked(location.path):
            write_file(location.path / name, [data], location.path)
    else:
        location.write(name, data)
