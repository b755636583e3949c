"""`armada cache gc`: remove what dead writers left."""

from dataclasses import dataclass
from pathlib import Path

from ...stages.store.files.lock import locked
from ...stages.store.files.own_files import size_of
from ...stages.store.format.manifests import check_cache
from ...stages.store.upkeep.leftovers import leftovers, remove_leftovers
from ...stages.store.writing.admission import refuse_mirror
from ..messages import size
from ..show import show_json


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would be."""

    paths: tuple[str, ...]
    bytes: int
    dry_run: bool


def run_gc(cache: Path, dry_run: bool) -> Collected:
    """Remove leftovers; raises CacheError if there is no cache, OutputError if it is read-only."""
    check_cache(cache)
    refuse_mirror(cache)
    with locked(cache):
        found = list(leftovers(cache))
        total = sum(map(size_of, found)) if dry_run else remove_leftovers(found, cache)
    names = tuple(path.relative_to(cache).as_posix() for path in found)
    return Collected(names, total, dry_run)


def show_gc(collected: Collected, as_json: bool) -> None:
    """One line for people, or all paths for programs."""
    if as_json:
        show_json(collected)
        return
    verb = "would remove" if collected.dry_run else "removed"
    print(f"{verb} {len(collected.paths)} leftovers of dead writers, {size(collected.bytes)}")
