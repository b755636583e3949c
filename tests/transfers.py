"""Pull and push as the pipeline does them, without a command line."""

from pathlib import Path
from typing import Any

from armada.cache_schemas.manifest import CacheIndex
from armada.stages.store.reading.reader import read_contents
from armada.stages.store.transfer.index import read_origin
from armada.stages.store.transfer.location import open_location
from armada.stages.store.transfer.pull import Choice, PullPlan, planned, pull
from armada.stages.store.transfer.push import plan_push, push, push_to_folder
from armada.stages.store.transfer.remote import LocalLocation, RemoteLocation
from small_caches import make_manifest

MANIFEST = make_manifest(rows_per_shard=64)
OTHER = make_manifest(rows_per_shard=64, seed=1)
FOLDER = f"teachers/{MANIFEST.fingerprint}"


def bring(url: object, cache: Path, jobs: int = 4, **choice: Any) -> PullPlan:
    """Pull what `choice` says from a place into a cache."""
    location = open_location(str(url))
    with planned(location, read_origin(location), cache, Choice(**choice), jobs) as plan:
        pull(location, cache, plan, jobs, lambda count: None)
    return plan


def send(cache: Path, url: str, jobs: int = 4) -> CacheIndex:
    """Push a cache to a URL."""
    location = RemoteLocation(url)
    plans = plan_push(cache, read_contents(cache).teachers, location)
    return push(cache, plans, location, jobs, lambda count: None)


def serve_ready(cache: Path, folder: Path) -> Path:
    """A copy of a cache at `folder` with an index, as `armada cache push` leaves it."""
    source = LocalLocation(cache)
    with planned(source, read_contents(cache), folder, Choice(), 4) as plan:
        push_to_folder(source, folder, plan, 4, lambda count: None)
    return folder


def visible(stored: dict[str, bytes]) -> dict[str, bytes]:
    """Of the bytes of a cache, those that readers look at: no locks, reservations or indexes."""
    hidden = ("writer.lock", "index.json", "mirror.json", "in_use.lock")
    return {name: data for name, data in stored.items() if name not in hidden}
