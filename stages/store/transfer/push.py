"""Send shards of a local cache to a place; a cut push goes on where it was.

    claim      armada.json and teacher.json, so that the size of shards is settled
    shards     in parallel: data and table files, then the commit record
    publish    Zarr documents, runs, and at the very end index.json in one write

Readers of the place see what index.json lists, so the last write is the commit. It lists what the
commit records there say, whoever sent them: two pushes at once both end up in it. Source files are
checked against their records before they leave, so damage is not passed on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ....cache_schemas.contents import CacheIndex, TeacherIndex
from ....cache_schemas.errors import CacheError
from ....cache_schemas.layout import CACHE_MANIFEST, TEACHER_MANIFEST, commit_file, teacher_folder
from ....cache_schemas.manifest import CacheManifest, CommitRecord
from ..files.plain_files import check_file
from .collisions import refuse_other, refuse_other_sizes
from .listing import list_documents, list_teachers
from .origin import read_index
from .parallel import in_parallel
from .place import RemotePlace
from .publication import publish
from .shard_files import ShardFile, shard_files

Advance = Callable[[int], None]


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
