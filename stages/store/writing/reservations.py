"""Which writer is at which keys: one folder for each shard in the making.

`reservations/<shard>/` appears with the keys of the shard in it and is its writer's own until the
commit moves the finished files out of it into their places (`staging.py`). All methods are called
by who holds the cache's lock, so no two writers reserve the same number or the same key.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....cache_schemas.keys import KEY_BYTES, KeyArray
from ....cache_schemas.layout import numbered, reservation_folder
from ..files.atomic import storage_error
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
        self._teacher = teacher
        self._watch = Watch(patience_s)

    def judged(self) -> tuple[dict[int, Path], list[Path]]:
        """Those of living writers, shard number -> folder, and what is nobody's any more."""
        folders = sorted((self._teacher / "reservations").glob("*"))
        dead = [f for f in folders if is_rubbish(f) or self._watch.is_dead(f)]
        return numbered(folder for folder in folders if folder not in dead), dead

    def living(self) -> dict[int, Path]:
        """Shard number -> folder; those of dead writers are removed."""
        living, dead = self.judged()
        for folder in dead:
            discard(folder)
        return living

    def keys(self, folder: Path) -> KeyArray:
        """The keys that a reservation holds, [N, 16]."""
        data = (folder / KEYS).read_bytes()
        whole = len(data) // KEY_BYTES * KEY_BYTES
        return np.frombuffer(data[:whole], dtype=np.uint8).reshape(-1, KEY_BYTES)

    def make(self, shard: int, keys: KeyArray) -> Reservation:
        """Reserve a shard number that nobody has, for keys [N, 16]."""
        folder = reservation_folder(self._teacher, shard)
        try:
            return Reservation(shard, Staging(folder, {KEYS: keys.tobytes()}))
        except OSError as cause:
            raise storage_error(folder, cause) from cause
