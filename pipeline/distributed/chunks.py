"""What goes between who runs a job on Dask and its workers: an order, chunks, outcomes.

The texts of a chunk go to a worker, counts come back; the answers go from the worker to the cache.
No key is in two chunks of a run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import ArmadaError
from ...cache_schemas.keys import KeyArray
from ...cache_schemas.layout import ROWS_TABLE
from ...cache_schemas.manifest import CommitRecord, TeacherManifest
from ...cache_schemas.teachers import TeacherSpec
from ...stages.corpus.corpus import Corpus
from ..precompute_job import PrecomputeJob


@dataclass(frozen=True, slots=True)
class Order:
    """What a run wants of every worker. The path of the job's cache is absolute; `spec` is that of
    the job's teacher as its owner sees it."""

    run_id: str
    job: PrecomputeJob
    manifest: TeacherManifest
    spec: TeacherSpec


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that make one shard, with keys [N, 16].

    shard: the number to take if it is free; unrelated: the keys tables (their hashes) of shards
    known to hold none of the keys, since a number does not tell a shard;
    waits: whether to wait for other writers who are at the keys."""

    number: int
    corpus: Corpus
    keys: KeyArray
    shard: int
    unrelated: frozenset[str]
    waits: bool


@dataclass(slots=True)
class Outcome:
    """What became of a chunk. shards: record, seconds spent asking and truncated texts of each that
    was committed. Unfinished: others are at what is left, or the run was stopped."""

    shards: list[tuple[CommitRecord, float, int]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unfinished: bool = False
    error: ArmadaError | None = None

    @property
    def rows(self) -> int:
        """Rows that were committed."""
        return sum(record.rows for record, _, _ in self.shards)


class Chunks:
    """The pending rows of a corpus in corpus order, so many for each shard."""

    def __init__(
        self,
        corpus: Corpus,
        keys: KeyArray,
        pending: npt.NDArray[np.int64],
        rows_per_shard: int,
        first_shard: int,
        committed: Iterable[CommitRecord],
    ) -> None:
        """The lowest numbers from `first_shard` on that are not `committed` are ours."""
        self._corpus, self._keys, self._pending = corpus, keys, pending
        self._size = rows_per_shard
        taken = {record.shard: keys_table(record) for record in committed}
        self._unrelated = frozenset(taken.values())
        free = (number for number in count(first_shard) if number not in taken)
        self._shards = list(islice(free, len(self)))

    def __len__(self) -> int:
        return -(-len(self._pending) // self._size)

    def rows(self, number: int) -> int:
        """How many rows a chunk has."""
        return len(self._places(number))

    def _places(self, number: int) -> npt.NDArray[np.int64]:
        return self._pending[number * self._size : (number + 1) * self._size]

    def cut(self, number: int, waits: bool) -> Chunk:
        """A chunk with its own copy of its rows."""
        places = self._places(number)
        corpus = replace(self._corpus.take(places), skipped=())
        shard = self._shards[number]
        return Chunk(number, corpus, self._keys[places], shard, self._unrelated, waits)

    def finished(self, outcome: Outcome) -> None:
        """The shards of a chunk that is done: they hold no key of another."""
        self._unrelated |= {keys_table(record) for record, _, _ in outcome.shards}


def keys_table(record: CommitRecord) -> str:
    """The hash of the table that holds a shard's keys."""
    return record.tables[ROWS_TABLE].xxh3_128
