"""Send shards of a local cache to a repository on the Hub, in few commits.

    batches    whole shards, data and commit records together, BATCH_FILES or BATCH_BYTES a commit
    the last   the last batch, with runs, Zarr documents, armada.json, index.json and the page

Each commit names its parent. If another one came in between, the documents there are read anew,
shards of the same numbers are compared, and the commit is made again on top of it; so the index
lists what all pushes have sent, and a reader of any commit finds a whole cache there, or none. An
interrupted push continues where it stopped: records there are known, and the Hub takes no file
twice.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from ....cache_schemas.errors import StorageError
from ....cache_schemas.layout import (
    CACHE_INDEX,
    CACHE_MANIFEST,
    TEACHER_MANIFEST,
    commit_file,
    teacher_folder,
)
from ....cache_schemas.manifest import CacheIndex, CacheManifest, TeacherIndex
from ..files.plain_files import check_file
from . import retries
from .arrivals import refuse_other, shard_files
from .hub import ConflictError, HubLocation
from .push import (
    ShardToSend,
    TeacherToSend,
    array_documents,
    cache_documents,
    known_documents,
    page_files,
    run_documents,
)
from .remote import Advance

_LOGGER = logging.getLogger(__name__)

BATCH_FILES, BATCH_BYTES = 400, 8 * 2**30
"""Limits of one commit: the Hub allows 128 an hour, and is slow for very many files."""
CONFLICTS = 10
"""Commits of others that may come in between, one after another."""

Files = dict[str, Path | bytes]


def push_to_hub(
    cache: Path,
    plans: list[TeacherToSend],
    location: HubLocation,
    mark: str,
    public: bool,
    jobs: int,
    advance: Advance,
) -> CacheIndex:
    """Carry out plans; the page of the cache goes along as `page_files` has it. Returns the index
    of the location then.

    A repository that is not there is made, private unless `public`. Raises DamagedCacheError for a
    source file that is not as committed, CacheError if the Hub refuses or others have put other
    shards there, StorageError if it fails; sent files stay, and the next push continues."""
    if location.is_new():
        location.create(public)
        state = "public" if public else "private"
        _LOGGER.info("%s: created a %s %s repository", location.shown, state, location.kind)
    hub_push = _HubPush(cache, [plan.source for plan in plans], location, jobs)
    return hub_push.run(plans, mark, advance)


class _HubPush:
    """One push. `_there` are the documents at the commit that the location is looking at."""

    def __init__(
        self, cache: Path, sources: list[TeacherIndex], location: HubLocation, jobs: int
    ) -> None:
        self._cache, self._sources, self._location, self._jobs = cache, sources, location, jobs
        self._look_anew()

    def run(self, plans: list[TeacherToSend], mark: str, advance: Advance) -> CacheIndex:
        *batches, last = list(_batches(plans)) or [[]]
        if ".gitignore" in self._location.names(""):  # what it left out must show before the index
            batches, last = [*batches, last], []
        for batch in batches:
            files = self._files(batch)
            self._commit(lambda files=files: files, "Shards of a cache of teacher features")  # type: ignore[misc]
            advance(_bytes(batch))
        files = self._files(last)
        pages: Files = {path.name: path for path in page_files(self._cache, self._location, mark)}
        self._commit(lambda: files | self._documents(files) | pages, "A cache of teacher features")
        advance(_bytes(last))
        if CACHE_INDEX not in self._location.names(""):
            raise self._lost(CACHE_INDEX)
        return self._index()

    def _commit(self, files: Callable[[], Mapping[str, Path | bytes]], message: str) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(ConflictError),
            wait=retries.WAIT,
            stop=stop_after_attempt(CONFLICTS),
            before_sleep=lambda _: self._look_anew(),
            reraise=True,
        )
        retrying(lambda: self._location.commit(files(), message, self._jobs))

    def _look_anew(self) -> None:
        self._location.renew()
        self._there = known_documents(self._location)
        known = {teacher.manifest.fingerprint: teacher for teacher in self._there.teachers}
        for source in self._sources:
            there = known.get(source.manifest.fingerprint)
            records = {record.shard: record for record in there.commits} if there else {}
            for ours in source.commits:
                theirs = records.get(ours.shard, ours)
                refuse_other(str(self._cache), ours, self._location.shown, theirs, source.manifest)

    def _files(self, batch: list[tuple[TeacherToSend, ShardToSend]]) -> Files:
        """The files of some shards, each checked against its record."""
        files: Files = {}
        for plan, shard in batch:
            manifest = plan.source.manifest
            folder = teacher_folder(Path(), manifest.fingerprint)
            for file in shard.files:
                check_file(self._cache / file.name, self._cache, file.record)
                files[file.name] = self._cache / file.name
            files[commit_file(folder, shard.record.shard).as_posix()] = shard.record.to_json()
            files[(folder / TEACHER_MANIFEST).as_posix()] = manifest.to_json()
        return files

    def _documents(self, sending: Files) -> Files:
        """All that goes with the last commit, on top of what is there and what is `sending`."""
        index = self._index()
        documents: Files = {CACHE_MANIFEST: CacheManifest().to_json()}
        for source in self._sources:
            self._require_sent(source, sending)
            fingerprint = source.manifest.fingerprint
            now = next(t for t in index.teachers if t.manifest.fingerprint == fingerprint)
            there = (t for t in self._there.teachers if t.manifest.fingerprint == fingerprint)
            folder = teacher_folder(Path(), fingerprint)
            documents[(folder / TEACHER_MANIFEST).as_posix()] = source.manifest.to_json()
            documents |= run_documents(next(there, None), source)
            documents |= array_documents(now)
        return documents | dict(cache_documents(self._location, index))

    def _index(self) -> CacheIndex:
        """The remote index merged with ours."""
        teachers = {teacher.manifest.fingerprint: teacher for teacher in self._there.teachers}
        for source in self._sources:
            fingerprint = source.manifest.fingerprint
            teachers[fingerprint] = _joined(teachers.get(fingerprint), source)
        return CacheIndex(teachers=tuple(teachers[name] for name in sorted(teachers)))

    def _require_sent(self, source: TeacherIndex, sending: Files) -> None:
        sizes = self._location.sizes(f"teachers/{source.manifest.fingerprint}")
        for record in source.commits:
            for file in shard_files(source.manifest, record):
                if file.name not in sending and sizes.get(file.name) != file.record.bytes:
                    raise self._lost(file.name)

    def _lost(self, name: str) -> StorageError:
        return StorageError(
            f"{self._location.where(name)}: was sent but is missing: a .gitignore excludes it, or "
            "another process removed it; push again"
        )


def _batches(
    plans: Iterable[TeacherToSend],
) -> Iterator[list[tuple[TeacherToSend, ShardToSend]]]:
    """Shards in their order, in lists that are one commit each."""
    batch: list[tuple[TeacherToSend, ShardToSend]] = []
    for plan in plans:
        for shard in plan.shards:
            grown = [*batch, (plan, shard)]
            count = sum(len(shard.files) + 1 for _, shard in grown)
            if batch and (count > BATCH_FILES or _bytes(grown) > BATCH_BYTES):
                yield batch
                grown = [(plan, shard)]
            batch = grown
    if batch:
        yield batch


def _bytes(batch: Iterable[tuple[TeacherToSend, ShardToSend]]) -> int:
    return sum(file.record.bytes for _, shard in batch for file in shard.files)


def _joined(there: TeacherIndex | None, ours: TeacherIndex) -> TeacherIndex:
    if there is None:
        return ours.model_copy(update={"part": None})
    commits = {record.shard: record for record in (*there.commits, *ours.commits)}
    runs = dict(there.runs)
    for run, record in ours.runs.items():
        seconds = (runs[run].teacher_seconds if run in runs else {}) | record.teacher_seconds
        runs[run] = record.model_copy(update={"teacher_seconds": dict(sorted(seconds.items()))})
    return there.model_copy(
        update={
            "commits": tuple(commits[shard] for shard in sorted(commits)),
            "runs": dict(sorted(runs.items())),
        }
    )
