"""Push to a folder of this machine: what arrives there is an ordinary cache, with an index."""

from pathlib import Path

from ....cache_schemas.contents import CacheIndex
from ....cache_schemas.layout import CACHE_INDEX
from ..files.lock import locked
from ..files.own_files import write_file
from ..reading.reader import read_contents
from .place import Advance, LocalPlace
from .plan import PullPlan
from .pull import pull


def push_to_folder(
    source: LocalPlace, target: Path, plan: PullPlan, jobs: int, advance: Advance
) -> CacheIndex:
    """Do what a plan says as a pull does it, then write the index of the target; returns it."""
    pull(source, target, plan, jobs, advance)
    with locked(target):
        index = read_contents(target)
        write_file(target / CACHE_INDEX, [index.to_json()], target)
    return index
