"""What dead writers left in a cache: reservations, partial files, files of uncommitted shards, and
teachers without any shard.

A writer removes what lies in its own teacher's folder; this looks at all of a cache. It is called
under the cache's lock. A reservation whose owner lives, or may live on another host, stays.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ....cache_schemas.layout import numbered
from ..files.own_files import remove_tree
from ..files.plain_files import check_teacher_folders, entries
from ..format.manifests import teacher_folders
from ..writing.reservations import PATIENCE_S, Reservations
from ..writing.teacher_folder import partial_documents, uncommitted


def leftovers(cache: Path) -> Iterator[Path]:
    """Files and folders that belong to nobody.

    Raises DamagedCacheError where a folder is none: what it held cannot be told from leftovers."""
    yield from partial_documents(cache)
    for teacher in teacher_folders(cache):
        yield from _of_teacher(teacher)


def _of_teacher(teacher: Path) -> Iterator[Path]:
    check_teacher_folders(teacher, teacher.parent.parent)
    living, dead = Reservations(teacher, PATIENCE_S).judged()
    committed = numbered(entries(teacher / "commits", "*.json"))
    if not committed and not living:
        yield teacher
        return
    yield from dead
    yield from uncommitted(teacher, committed, numbered(living))


def remove_leftovers(found: Iterable[Path], cache: Path) -> int:
    """Remove what was found; returns how many bytes it had."""
    return sum(remove_tree(path, cache) for path in found)
