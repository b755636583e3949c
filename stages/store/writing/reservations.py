"""Which writer is at which keys: one folder for each shard in the making.

`reservations/<shard>/` appears with the keys of the shard in it and is its writer's own until the
commit moves the finished files out of it into their places (`staging.py`). All methods are called
by who holds the cache's lock, so no two writers reserve the same number or the same key.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.keys import KEY_BYTES, KeyArray, keys_to_array
from ....cache_schemas.layout import numbered, reservation_folder
from ....cache_schemas.manifest import MAX_ROWS_PER_SHARD
from ..files.atomic import storage_error
from ..files.own_files import make_folder
from ..files.plain_files import check_folders, entries, read_bytes
from .staging import Staging, Watch, discard, is_rubbish

KEYS = "keys"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A shard number and a folder to make the shard in, both ours until the commit."""

    shard: int
    staging: Staging


class Reservations:
    """The reservations of one teacher's folder, as one writer sees them."""

    def __init__(self, teacher: Path, patience_s: float) -> None:
        self._teacher, self._cache = teacher, teacher.parent.parent
        self._watch = Watch(patience_s)

    def judged(self) -> tuple[list[Path], list[Path]]:
        """The folders of living owners, those of pulls too, and what is nobody's any more."""
        there = entries(self._teacher / "reservations")
        folders = [path for path in there if path.is_dir() and not path.is_symlink()]
        dead = [f for f in folders if is_rubbish(f) or self._watch.is_dead(f)]
        return [folder for folder in folders if folder not in dead], dead

    def living(self) -> dict[int, Path]:
        """Shard number -> folder; those of dead owners are removed."""
        living, dead = self.judged()
        for folder in dead:
            check_folders(folder, self._cache)
            discard(folder)
        return numbered(living)

    def numbers(self) -> set[int]:
        """Shard numbers that are reserved, or that something else has the name of."""
        return set(numbered(entries(self._teacher / "reservations")))

    def keys(self, folder: Path) -> KeyArray:
        """The keys that a reservation holds, [N, 16]; none if it was given back this moment, or
        is no writer's."""
        try:
            data = read_bytes(folder / KEYS, self._cache, MAX_ROWS_PER_SHARD * KEY_BYTES)
        except DamagedCacheError:
            if os.path.lexists(folder / KEYS):
                raise
            return keys_to_array([])
        whole = len(data) // KEY_BYTES * KEY_BYTES
        return np.frombuffer(data[:whole], dtype=np.uint8).reshape(-1, KEY_BYTES)

    def make(self, shard: int, keys: KeyArray) -> Reservation:
        """Reserve a shard number that nobody has, for keys [N, 16]."""
        folder = reservation_folder(self._teacher, shard)
        make_folder(folder.parent, self._cache)
        try:
            return Reservation(shard, Staging(folder, {KEYS: keys.tobytes()}))
        except OSError as cause:
            raise storage_error(folder, cause) from cause
