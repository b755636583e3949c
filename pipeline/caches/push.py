"""`cache push`: what a place lacks of a local cache is sent there."""

import time
from collections.abc import Sequence
from pathlib import Path

from ...cache_schemas.contents import CacheIndex
from ...cache_schemas.errors import CacheError
from ...cache_schemas.locations import shown_url
from ...stages.store.reading.contents import read_contents
from ...stages.store.transfer.choice import Choice, chosen_teachers
from ...stages.store.transfer.local_push import push_to_folder
from ...stages.store.transfer.page import send_page
from ...stages.store.transfer.place import (
    LocalPlace,
    RemotePlace,
    is_hub,
    open_place,
    writable,
)
from ...stages.store.transfer.plan import planned
from ...stages.store.transfer.push import Advance, TeacherToSend, plan_push, push
from ..messages import CountProgress, say_that_a_pull_waits
from ..signals import telling_what_is_kept
from .card_text import MARK
from .sharing import (
    Shared,
    SharedTeacher,
    Transfer,
    arrived,
    refuse_itself,
    shared_teacher,
    storage_options,
)

Sent = tuple[str | None, list[SharedTeacher]]
"""The digest of the place, if it was written to, and what went there."""


@telling_what_is_kept(lambda: "what was sent is kept; the same command goes on")
def push_cache(
    cache: Path, url: str, teachers: Sequence[str], transfer: Transfer, public: bool = False
) -> Shared:
    """Send what the place at `url` lacks of the local cache at `cache`; a repository on the Hub is
    made if there is none, `public` or private.

    Raises CacheError if the place is something else or holds other shards, DamagedCacheError for a
    local file that is not as committed, StorageError if the place fails; what was sent stays, and
    the same call goes on from there."""
    started = time.monotonic()
    if public and not is_hub(url):
        raise CacheError(f"{shown_url(url)}: --public is for repositories on the Hub, hf://...")
    place = open_place(url, storage_options(transfer.options))
    refuse_itself(place, cache)
    if isinstance(place, LocalPlace):
        digest, sent = _to_folder(cache, place, teachers, transfer)
    else:
        digest, sent = _to_url(cache, place, teachers, transfer, public)
    return Shared(
        place=place.shown,
        digest=digest,
        teachers=tuple(sent),
        seconds=time.monotonic() - started,
        dry_run=transfer.dry_run,
    )


def _to_folder(cache: Path, place: LocalPlace, teachers: Sequence[str], transfer: Transfer) -> Sent:
    source, choice, index = LocalPlace(cache), Choice(tuple(teachers)), read_contents(cache)
    waiting, jobs, dry_run = say_that_a_pull_waits(transfer.quiet), transfer.jobs, transfer.dry_run
    with planned(source, index, place.path, choice, jobs, dry_run, waiting) as plan:
        digest = None
        if not dry_run:
            with CountProgress("push", "bytes", plan.bytes, transfer.quiet) as progress:
                target = push_to_folder(source, place.path, plan, jobs, progress.advance)
                digest = target.digest
            send_page(cache, place, MARK)
    return digest, [arrived(teacher) for teacher in plan.teachers]


def _to_url(
    cache: Path, place: RemotePlace, teachers: Sequence[str], transfer: Transfer, public: bool
) -> Sent:
    chosen = chosen_teachers(str(cache), read_contents(cache), teachers)
    plans = plan_push(cache, chosen, writable(place))
    digest = None
    if not transfer.dry_run:
        total = sum(plan.bytes for plan in plans)
        with CountProgress("push", "bytes", total, transfer.quiet) as progress:
            digest = _push(cache, plans, place, transfer.jobs, public, progress.advance).digest
    return digest, [_sent(plan) for plan in plans]


def _push(
    cache: Path,
    plans: list[TeacherToSend],
    place: RemotePlace,
    jobs: int,
    public: bool,
    advance: Advance,
) -> CacheIndex:
    if is_hub(place.shown):
        from ...stages.store.transfer.hub_place import HubPlace
        from ...stages.store.transfer.hub_push import push_to_hub

        assert isinstance(place, HubPlace)
        return push_to_hub(cache, plans, place, MARK, public, jobs, advance)
    index = push(cache, plans, place, jobs, advance)
    send_page(cache, place, MARK)
    return index


def _sent(plan: TeacherToSend) -> SharedTeacher:
    manifest = plan.source.manifest
    features = tuple(feature.name for feature in manifest.spec.features)
    files = [len(shard.files) for shard in plan.shards]
    return shared_teacher(manifest, features, files, plan.there, plan.bytes)
