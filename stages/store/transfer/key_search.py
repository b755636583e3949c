"""Which shards of a place hold the keys of a corpus: read from its `rows` tables.

A rows table is about 1 % of its shard. Those that are not in the local cache are fetched to a
folder of the caller's, so that a shard that is then wanted need not bring its own again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....cache_schemas.contents import TeacherIndex
from ....cache_schemas.keys import KeyArray, first_occurrences
from ....cache_schemas.layout import ROWS_TABLE
from ....cache_schemas.manifest import CommitRecord
from ..format.rows import KeyIndex
from ..format.tables import read_keys
from .arrivals import fetch
from .parallel import in_parallel
from .place import Place
from .shard_files import ShardFile, shard_files


@dataclass(frozen=True, slots=True)
class FoundKeys:
    """Shards that hold some of the keys, how many different keys those are, and the tables that
    were fetched, by name."""

    shards: frozenset[int]
    keys: int
    tables: Mapping[str, Path]


def find_keys(
    place: Place,
    origin: TeacherIndex,
    keys: KeyArray,
    cache: Path,
    here: Iterable[int],
    folder: Path,
    jobs: int,
) -> FoundKeys:
    """Look for keys [N, 16] in all shards of a teacher; `here` are those the local cache has."""
    tables = {record.shard: rows_file(origin, record) for record in origin.commits}
    known = frozenset(here)
    local = {shard for shard, file in tables.items() if shard in known and file.is_at(cache)}
    missing = [file for shard, file in tables.items() if shard not in local]
    fetched = {file.name: folder / file.name for file in missing}
    in_parallel(jobs, lambda file: _fetch(place, file, fetched[file.name]), missing)
    wanted = KeyIndex(keys[first_occurrences(keys)])
    shards, found = set(), np.zeros(len(wanted), dtype=bool)
    for record in origin.commits:
        name = tables[record.shard].name
        rows = wanted.find(read_keys(fetched.get(name, cache / name), record.rows))
        if (rows >= 0).any():
            shards.add(record.shard)
            found[rows[rows >= 0]] = True
    return FoundKeys(frozenset(shards), int(found.sum()), fetched)


def _fetch(place: Place, file: ShardFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fetch(place, file, target)


def rows_file(origin: TeacherIndex, record: CommitRecord) -> ShardFile:
    """The rows table of a shard."""
    return next(shard_files(origin.manifest, record, (), (ROWS_TABLE,)))
