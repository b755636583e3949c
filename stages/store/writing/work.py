"""What a run wants answered, dealt out between it and all other writers of the same cache.

    work = Work(writer, keys)
    while (task := work.reserve()) is not None:
        ...ask about keys[task.rows]; writer.commit(..., task.reservation)

Each task is the next rows, in the order given, whose keys nobody has committed and nobody else is
at; so writers of one corpus take turns at it, and what a writer leaves undone (it failed, it died)
another takes up. A key is dealt out once to a run: what came back without an answer is not asked
about again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....cache_schemas.keys import KeyArray, first_occurrences
from ....cache_schemas.layout import ROWS_TABLE, table_file
from ....cache_schemas.manifest import CommitRecord
from ..format.rows import KeyIndex, Rows
from ..format.tables import read_keys
from .reservations import Reservation
from .writer import CacheWriter, Turn

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Task:
    """Positions [N] in the keys of the work, ascending, and the shard that is to hold them."""

    rows: Rows
    reservation: Reservation


class Work:
    """The pending keys of one run. `waiting` is called with a number of keys when all that is left
    is what other writers are at: until they commit it, or die."""

    def __init__(
        self,
        writer: CacheWriter,
        keys: KeyArray,
        waiting: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._writer, self._keys, self._waiting = writer, keys, waiting
        self._rows = first_occurrences(keys)
        self._index = KeyIndex(keys[self._rows])
        self._open = np.ones(len(self._rows), dtype=bool)
        self._dealt = np.zeros(len(self._rows), dtype=bool)
        self._counted: dict[int, CommitRecord] = {}
        for commit in writer.commits:
            self._count(commit)
        self.pending = int(self._open.sum())
        """Keys that were not committed when the work began."""

    @property
    def done_elsewhere(self) -> int:
        """Keys that other writers have committed since."""
        return self.pending - int((self._open | self._dealt).sum())

    def reserve(self, preferred: int | None = None) -> Task | None:
        """The next task, of at most `rows_per_shard` keys; None when there is none left.

        `preferred`: the shard number to take, if it is free."""
        while True:
            with self._writer.turn() as turn:
                taken = self._see(turn)
                mine = self._open & ~self._dealt
                free = np.flatnonzero(mine & ~taken)[: self._writer.manifest.rows_per_shard]
                if len(free):
                    self._dealt[free] = True
                    rows = self._rows[free]
                    return Task(rows, turn.reserve(self._keys[rows], preferred))
            if not mine.any():
                return None
            self._waiting(int(mine.sum()))
            time.sleep(POLL_S)

    def put_back(self, task: Task) -> None:
        """Deal out again what another writer took over from us, unless that commits it."""
        self._dealt[np.searchsorted(self._rows, task.rows)] = False

    def _see(self, turn: Turn) -> npt.NDArray[np.bool_]:
        """Take note of new commits; returns which keys are reserved."""
        for shard, record in turn.commits.items():
            if self._counted.get(shard) != record:
                self._count(record)
        taken = np.zeros(len(self._rows), dtype=bool)
        for keys in turn.reserved_keys():
            taken[self._index.found(keys)] = True
        return taken

    def _count(self, record: CommitRecord) -> None:
        path = table_file(self._writer.folder, ROWS_TABLE, record.shard)
        self._open[self._index.found(read_keys(path, record.rows))] = False
        self._counted[record.shard] = record
