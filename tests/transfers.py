"""Pull and push as the pipeline does them, without a command line."""

from pathlib import Path
from typing import Any

from armada.cache_schemas.manifest import CacheIndex
from armada.stages.store.reading.reader import read_contents
from armada.stages.store.transfer.index import read_origin
from armada.stages.store.transfer.location import open_place
from armada.stages.store.transfer.place import LocalPlace, RemotePlace
from armada.stages.store.transfer.pull import Choice, PullPlan, planned, pull
from armada.stages.store.transfer.push import plan_push, push, push_to_folder
from small_caches import make_manifest

MANIFEST = make_manifest(rows_per_shard=64)
OTHER = make_manifest(rows_per_shard=64, seed=1)
FOLDER = f"teachers/{MANIFEST.fingerprint}"


def bring(url: object, cache: Path, jobs: int = 4, **choice: Any) -> PullPlan:
    """Pull what `choice` says from a place into a cache."""
    place = open_place(str(url))
    with planned(place, read_origin(place), cache, Choice(**choice), jobs) as plan:
        pull(place, cache, plan, jobs, lambda count: None)
    return plan


def send(cache: Path, url: str, jobs: int = 4) -> CacheIndex:
    """Push a cache to a URL."""
    place = RemotePlace(url)
    plans = plan_push(cache, read_contents(cache).teachers, place)
    return push(cache, plans, place, jobs, lambda count: None)


def serve_ready(cache: Path, folder: Path) -> Path:
    """A copy of a cache at `folder` with an index, as `armada cache push` leaves it."""
    source = LocalPlace(cache)
    with planned(source, read_contents(cache), folder, Choice(), 4) as plan:
        push_to_folder(source, folder, plan, 4, lambda count: None)
    return folder


def visible(stored: dict[str, bytes]) -> dict[str, bytes]:
    """Of the bytes of a cache, those that readers look at: no locks, reservations or indexes."""
    hidden = ("writer.lock", "index.json", "mirror.json", "in_use.lock")
    return {name: data for name, data in stored.items() if name not in hidden}
