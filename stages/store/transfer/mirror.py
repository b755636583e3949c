"""A local mirror of a cache at a URL, which fills itself as shards are needed.

    mirror = Mirror(url, folder, limit)
    cache = mirror.open(teacher)                     all documents and keys
    cache = mirror.narrowed(cache, feature, keys)    just the shards that hold these keys
    mirror.fetch_ahead(cache, feature, keys)         they come, in this order of first use

In the mirror every file lies where a cache has it, moved there when it was whole, and is not
fetched again. Shards with the first requested feature are committed, so that a mirror is a cache
like any other, of a part of a teacher.

`mirror.json`, made when the folder is first used as a mirror, says of what. It keeps the documents
that were there, so that files that came long ago are used only while they are still the ones that
are there.
"""

import hashlib
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ....cache_schemas.errors import CacheError
from ....cache_schemas.keys import KeyArray
from ....cache_schemas.layout import MIRROR, TEACHER_MANIFEST, teacher_folder
from ....cache_schemas.locations import expand_home, shown_url
from ....cache_schemas.manifest import CacheIndex, CommitRecord, Document, TeacherIndex
from ..files.lock import locked
from ..files.own_files import write_file
from ..files.plain_files import read_document
from ..format.manifests import choose_teacher, held_features, list_teachers, read_commits
from ..format.rows import Rows
from ..reading import reader
from ..reading.memory import Access
from ..reading.reader import Cache
from ..writing.teacher_folder import create_cache
from .index import read_origin
from .location import is_local, local_path
from .mirrored_teacher import FeatureFile, MirroredTeacher, MirrorSpace, connection
from .pull import JOBS


def open_cache(
    path: str | Path,
    teacher: str | None = None,
    verify: bool = False,
    access: Access = "auto",
    mirror: str | Path | None = None,
) -> Cache:
    """Open the features of one teacher of the cache at `path`, a folder or a URL.

    `teacher` is a fingerprint or a prefix of one that no other teacher of the cache shares; it may
    be left out if the cache has one teacher. With `verify`, the checksum of each file is compared
    when the file is first opened. `access` is how features are read: `warm` for those that fit into
    memory, `cold` for larger ones, `auto` by size. Of a cache at a URL, documents and keys come at
    once and shards when they are first touched, to the folder `mirror`, by default one in the
    user's own cache folder, where they stay. Raises CacheError if there is no such cache or
    teacher, DamagedCacheError, or StorageError if the location cannot be reached.
    """
    if is_local(str(path)):
        return reader.open_cache(local_path(str(path)), teacher, verify, access)
    here = Path(expand_home(str(mirror))) if mirror else default_mirror(str(path))
    filling = Mirror(str(path), here)
    cache = filling.open(teacher, verify, access)
    weakref.finalize(cache, _let_go, filling)  # others evict nothing as long as the cache lives
    return cache


def _let_go(mirror: "Mirror") -> None:
    """Release what was kept until now."""


def default_mirror(url: str) -> Path:
    """Default folder of a cache's mirror."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(shown_url(url).rstrip("/").encode()).hexdigest()[:32]
    return Path(base) / "armada" / name


@dataclass(frozen=True, slots=True)
class ToCome:
    """Shards, and their bytes, that a run needs and a mirror does not hold yet."""

    shards: int
    bytes: int


class Mirror:
    """The cache at `url`, of which shards come to `folder` when they are needed; at most
    `limit_bytes` stay there. Hold on to it while its caches are in use."""

    def __init__(
        self, url: str, folder: Path, limit_bytes: int | None = None, digest: str | None = None
    ) -> None:
        """Raises CacheError if there is no cache, or one of another digest, or the folder is
        something else than its mirror."""
        location = connection(url, os.getpid())
        self.shown, self.index = location.shown, read_origin(location, digest)
        claim_mirror(folder, location.shown, self.index)
        self._folder, self._space = folder, MirrorSpace(folder, limit_bytes)
        self._teachers = {
            origin.manifest.fingerprint: MirroredTeacher(folder, url, origin)
            for origin in self.index.teachers
        }

    def open(self, prefix: str | None, verify: bool = False, access: Access = "auto") -> Cache:
        """The features of one teacher as `open_cache` gives them; brings the keys of all shards."""
        manifests = [origin.manifest for origin in self.index.teachers]
        empty = [each.manifest.fingerprint for each in self.index.teachers if not each.commits]
        chosen = choose_teacher(self.shown, manifests, prefix, empty).fingerprint
        added = [
            self._cache(teacher.origin, verify, access=access)
            for teacher in self._teachers.values()
            if teacher.origin.manifest.extends == chosen
        ]
        return self._cache(self._teachers[chosen].origin, verify, added, access)

    def _cache(
        self,
        origin: TeacherIndex,
        verify: bool,
        extensions: Sequence[Cache] = (),
        access: Access = "auto",
    ) -> Cache:
        teacher = self._teachers[origin.manifest.fingerprint]
        teacher.fetch_keys(JOBS)
        return Cache(
            self._folder, origin.manifest, teacher.prepare, extensions, verify, access, origin
        )

    def narrowed(self, cache: Cache, feature: str, keys: KeyArray, verify: bool = False) -> Cache:
        """The same cache with just the feature, and the shards that hold some of the keys."""
        holder = cache.holder(feature)
        if holder is cache:
            return self._cache(self._part(cache, keys), verify)
        added = self._cache(self._part(holder, keys), verify)
        return self._cache(self._part(cache, keys), verify, [added])

    def _part(self, cache: Cache, keys: KeyArray) -> TeacherIndex:
        origin = self._teachers[cache.teacher.fingerprint].origin
        commits = [cache.commits[position] for position in sorted(first_uses(cache, keys))]
        return origin.model_copy(update={"commits": tuple(commits)})

    def fetch_ahead(self, cache: Cache, feature: str, keys: KeyArray) -> ToCome:
        """Begin to bring a feature of the shards that hold keys [N, 16], in their order.

        Raises CacheError if they do not fit into the mirror's limit."""
        holder = cache.holder(feature)
        teacher = self._teachers[holder.teacher.fingerprint]
        shards = [holder.commits[position].shard for position in first_uses(holder, keys)]
        needed = [
            FeatureFile(teacher.folder, shard, teacher.file(feature, shard)) for shard in shards
        ]
        self._space.make_room(needed, self._known())
        missing = [one for one in needed if not one.file.is_at(self._folder)]
        teacher.declare(feature)
        teacher.fetch_ahead(feature, [one.shard for one in missing], JOBS)
        return ToCome(len(missing), sum(one.file.record.bytes for one in missing))

    def _known(self) -> Iterator[FeatureFile]:
        """Everything that could be fetched again."""
        for teacher in self._teachers.values():
            for spec in held_features(teacher.origin.manifest, teacher.origin.part):
                for record in teacher.origin.commits:
                    file = teacher.file(spec.name, record.shard)
                    yield FeatureFile(teacher.folder, record.shard, file)


def first_uses(cache: Cache, keys: KeyArray) -> list[int]:
    """Positions of the shards that hold keys, in the order of first use by the keys."""
    rows: Rows = cache.find(keys)
    starts = np.cumsum([0, *(commit.rows for commit in cache.commits)])
    positions = np.searchsorted(starts, rows[rows >= 0], side="right") - 1
    found, first = np.unique(positions, return_index=True)
    return [int(position) for position in found[np.argsort(first)]]


class MirrorRecord(Document):
    """`mirror.json`: a URL, without passwords, and what was there when it was last looked at."""

    max_bytes: ClassVar[int] = 2 * CacheIndex.max_bytes

    origin: str
    index: CacheIndex


def claim_mirror(folder: Path, origin: str, index: CacheIndex) -> None:
    """Make `folder` the mirror of the cache at `origin`, whose documents are `index`.

    Raises CacheError if it is something else, or holds what is not there any more."""
    create_cache(folder)
    record = MirrorRecord(origin=origin, index=index)
    with locked(folder):
        file = folder / MIRROR
        before = read_document(MirrorRecord, file, folder) if file.exists() else None
        if before is None and list_teachers(folder):
            raise CacheError(f"mirror {folder}: is a cache of its own; name an empty folder")
        if before is not None and before.origin != origin:
            raise CacheError(
                f"mirror {folder}: is that of {before.origin}; name an empty folder for {origin}"
            )
        if before == record:
            return
        for teacher in index.teachers:
            _refuse_changed(folder, origin, teacher, before)
        write_file(file, [record.to_json()], folder)


def _refuse_changed(
    folder: Path, origin: str, there: TeacherIndex, before: MirrorRecord | None
) -> None:
    records = _records_before(there, before)
    if (teacher_folder(folder, there.manifest.fingerprint) / TEACHER_MANIFEST).exists():
        records |= {r.shard: r for r in read_commits(folder, there.manifest)}
    for record in there.commits:
        if records.get(record.shard, record) != record:
            raise CacheError(
                f"mirror {folder}: shard {record.shard} of teacher "
                f"{there.manifest.fingerprint[:12]} differs from the one now at {origin}; name an "
                "empty folder"
            )


def _records_before(there: TeacherIndex, before: MirrorRecord | None) -> dict[int, CommitRecord]:
    for teacher in before.index.teachers if before else ():
        if teacher.manifest.fingerprint == there.manifest.fingerprint:
            return {record.shard: record for record in teacher.commits}
    return {}
