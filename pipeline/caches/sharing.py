"""`armada cache push` and `pull`: access, selection, and reports.

A URL and a selection become a plan, and the plan is carried out; only missing files are
transferred.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...cache_schemas.errors import CacheError, JobError
from ...cache_schemas.keys import first_occurrences
from ...cache_schemas.locations import shown_url
from ...cache_schemas.manifest import CacheIndex, TeacherManifest
from ...stages.corpus.corpus import PLAIN, Corpus, read_corpus
from ...stages.corpus.files import require_use
from ...stages.corpus.text_files import TextFormat
from ...stages.store.reading.reader import read_contents
from ...stages.store.transfer.index import read_origin
from ...stages.store.transfer.location import is_hub, open_location
from ...stages.store.transfer.pull import JOBS, Choice, TeacherPlan, chosen_teachers, planned, pull
from ...stages.store.transfer.push import TeacherToSend, plan_push, push, push_to_folder, send_page
from ...stages.store.transfer.remote import Advance, LocalLocation, Location, RemoteLocation
from ..messages import CountProgress, say_that_a_pull_waits
from ..signals import telling_what_is_kept
from .card_text import MARK


@dataclass(frozen=True, slots=True)
class Transfer:
    """Access to the other location. `options` are KEY=VALUE with YAML values, for fsspec."""

    options: Sequence[str] = ()
    jobs: int = JOBS
    dry_run: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class SharedTeacher:
    """Transfer of one teacher: shards sent or fetched, shards already there, files and bytes.
    `texts` counts texts of the corpus found with it, if one was given."""

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
    """Result of a push or pull, or of its dry run. `digest` is that of the other location, after a
    push; `texts` counts the different texts of the corpus, if one was given."""

    location: str
    digest: str | None
    teachers: tuple[SharedTeacher, ...]
    seconds: float
    dry_run: bool = False
    texts: int | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Selection of a pull; `corpus` with its `text_columns` chooses shards by their texts, `digest`
    is the expected one of the whole cache."""

    teachers: Sequence[str] = ()
    features: Sequence[str] = ()
    corpus: Sequence[str] = ()
    text_columns: Sequence[str] = ()
    skip_bad_rows: bool = False
    digest: str | None = None
    text_format: TextFormat = PLAIN


@telling_what_is_kept(lambda: "received files are kept; run the same command to continue")
def pull_cache(url: str, cache: Path, wanted: Wanted, transfer: Transfer) -> Shared:
    """Download the selected part of the cache at `url` into the local cache at `cache`.

    Raises CacheError if it is missing or does not match, DamagedCacheError or StorageError if the
    transfer fails; received files stay, and the same call continues."""
    started = time.monotonic()
    corpus = _corpus(wanted)
    location = open_location(url, _storage_options(transfer.options))
    _refuse_itself(location, cache)
    index = read_origin(location, wanted.digest and wanted.digest.lower())
    keys = corpus.keys() if corpus else None
    choice = Choice(tuple(wanted.teachers), tuple(wanted.features), keys)
    waiting = say_that_a_pull_waits(transfer.quiet)
    with planned(location, index, cache, choice, transfer.jobs, transfer.dry_run, waiting) as plan:
        if not transfer.dry_run:
            with CountProgress("pull", "bytes", plan.bytes, transfer.quiet) as progress:
                pull(location, cache, plan, transfer.jobs, progress.advance)
    return Shared(
        location=location.shown,
        digest=index.digest,
        teachers=tuple(_arrived(teacher) for teacher in plan.teachers),
        seconds=time.monotonic() - started,
        dry_run=transfer.dry_run,
        texts=None if keys is None else len(first_occurrences(keys)),
        skipped=corpus.skipped if corpus else (),
    )


def _corpus(wanted: Wanted) -> Corpus | None:
    named = {name for name in ("encoding", "delimiter") if getattr(wanted.text_format, name)}
    if not wanted.corpus and not wanted.text_columns:
        if named:
            raise JobError(
                f"--{min(named)}: describes the file format of --corpus, which is missing"
            )
        return None
    if not wanted.corpus or not wanted.text_columns:
        raise JobError("--corpus and --text-column: give both to pull what a corpus needs")
    require_use(wanted.text_format, wanted.corpus)
    return read_corpus(
        wanted.corpus,
        wanted.text_columns,
        id_column=False,
        skip_bad_rows=wanted.skip_bad_rows,
        form=wanted.text_format,
    )


Sent = tuple[str | None, list[SharedTeacher]]
"""The digest of the remote cache, if it was written to, and the files sent."""


@telling_what_is_kept(lambda: "sent files are kept; run the same command to continue")
def push_cache(
    cache: Path, url: str, teachers: Sequence[str], transfer: Transfer, public: bool = False
) -> Shared:
    """Upload to `url` what it lacks of the local cache at `cache`; a repository on the Hub is
    created if there is none, `public` or private. Raises CacheError if the location holds something
    else or other shards, DamagedCacheError for a local file that is not as committed, StorageError
    if the transfer fails; sent files stay, and the same call continues."""
    started = time.monotonic()
    if public and not is_hub(url):
        raise CacheError(f"{shown_url(url)}: --public is for repositories on the Hub, hf://...")
    location = open_location(url, _storage_options(transfer.options))
    _refuse_itself(location, cache)
    if isinstance(location, LocalLocation):
        digest, sent = _to_folder(cache, location, teachers, transfer)
    else:
        digest, sent = _to_url(cache, location, teachers, transfer, public)
    return Shared(
        location=location.shown,
        digest=digest,
        teachers=tuple(sent),
        seconds=time.monotonic() - started,
        dry_run=transfer.dry_run,
    )


def _to_folder(
    cache: Path, location: LocalLocation, teachers: Sequence[str], transfer: Transfer
) -> Sent:
    source, choice, index = LocalLocation(cache), Choice(tuple(teachers)), read_contents(cache)
    waiting, jobs, dry_run = say_that_a_pull_waits(transfer.quiet), transfer.jobs, transfer.dry_run
    with planned(source, index, location.path, choice, jobs, dry_run, waiting) as plan:
        digest = None
        if not dry_run:
            with CountProgress("push", "bytes", plan.bytes, transfer.quiet) as progress:
                target = push_to_folder(source, location.path, plan, jobs, progress.advance)
                digest = target.digest
            send_page(cache, location, MARK)
    return digest, [_arrived(teacher) for teacher in plan.teachers]


def _to_url(
    cache: Path, location: RemoteLocation, teachers: Sequence[str], transfer: Transfer, public: bool
) -> Sent:
    chosen = chosen_teachers(str(cache), read_contents(cache), teachers)
    location.require_writable()
    plans = plan_push(cache, chosen, location)
    digest = None
    if not transfer.dry_run:
        total = sum(plan.bytes for plan in plans)
        with CountProgress("push", "bytes", total, transfer.quiet) as progress:
            digest = _push(cache, plans, location, transfer.jobs, public, progress.advance).digest
    return digest, [_sent(plan) for plan in plans]


def _push(
    cache: Path,
    plans: list[TeacherToSend],
    location: RemoteLocation,
    jobs: int,
    public: bool,
    advance: Advance,
) -> CacheIndex:
    if is_hub(location.shown):
        from ...stages.store.transfer.hub import HubLocation
        from ...stages.store.transfer.hub_push import push_to_hub

        assert isinstance(location, HubLocation)
        return push_to_hub(cache, plans, location, MARK, public, jobs, advance)
    index = push(cache, plans, location, jobs, advance)
    send_page(cache, location, MARK)
    return index


def _sent(plan: TeacherToSend) -> SharedTeacher:
    manifest = plan.source.manifest
    features = tuple(feature.name for feature in manifest.spec.features)
    files = [len(shard.files) for shard in plan.shards]
    return _shared_teacher(manifest, features, files, plan.there, plan.bytes)


def _arrived(plan: TeacherPlan) -> SharedTeacher:
    """The report of one teacher whose shards come to a local cache."""
    return _shared_teacher(
        plan.origin.manifest,
        tuple(f.name for f in plan.origin.manifest.spec.features if f.name in plan.features),
        [len(shard.files) for shard in plan.shards],
        plan.there,
        plan.bytes,
        plan.found,
    )


def _shared_teacher(
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


def _storage_options(settings: Sequence[str]) -> dict[str, Any]:
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


def _refuse_itself(location: Location, cache: Path) -> None:
    """Raise CacheError if a local cache would be copied onto itself."""
    if isinstance(location, LocalLocation) and location.path.resolve() == cache.resolve():
        raise CacheError(f"cache {cache}: is both source and destination; name another location")
