"""One pull at a time into a cache, so that what one has planned no other changes on the way.

The lock is a file in the cache's folder, held (flock) from the plan to the last document, and gone
afterwards. Readers and writers do not look at it: they are kept apart by other means.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ....cache_schemas.errors import OutputError
from ....cache_schemas.layout import CACHE_MANIFEST, PULL_LOCK
from ..files.lock import give_back, take
from ..files.own_files import make_folder

POLL_S = 0.2


@contextmanager
def one_pull(cache: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Be the one that pulls into the cache at `cache`, which need not exist; `waiting` is called
    if another pull is to be waited for. If no cache has come to be, folders made here go again.

    Raises OutputError or StorageError if the folder cannot be made or written."""
    if cache.exists() and not cache.is_dir():
        yield  # it will be refused for what it is
        return
    made = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    file = _held(cache, waiting)
    try:
        yield
    finally:
        give_back(file, cache, PULL_LOCK)
        if not (cache / CACHE_MANIFEST).exists():
            _remove_empty(made)


def _held(cache: Path, waiting: Callable[[], None]) -> BinaryIO:
    told = False
    while True:
        make_folder(cache, cache)
        file = _locked(cache)
        if file is not None:
            return file
        if not told:
            waiting()
            told = True
        time.sleep(POLL_S)


def _locked(cache: Path) -> BinaryIO | None:
    """The lock if it is free; None if another pull has it, or is just giving it up."""
    try:
        return take(cache, PULL_LOCK)
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None  # the folder went again
        raise


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # another process has put something there
        for folder in folders:
            folder.rmdir()
