"""Our cache: written shard by shard through `CacheWriter`, read by `open_cache`.

The same files are read by zarr-python, zarrs and tensorstore too, see `zarr_libraries.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import KeyArray
from armada.cache_schemas.manifest import TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.store.reading.prefetch import BlockOrder, ReadAhead, batches_of
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter

from .reader import (
    BATCH_ROWS,
    BLOCK_ROWS,
    SHARD_ROWS,
    WINDOW_BLOCKS,
    Batch,
    Format,
    Reader,
)
from .selecting import Selecting
from .source import RowNumbers, Values
from .zarr_libraries import FEATURE, TensorStore, ZarrPython, Zarrs


def teacher(dim: int, rows_per_shard: int) -> TeacherManifest:
    """A teacher that nobody has to run, with one feature of `dim` numbers."""
    feature = FeatureSpec(name=FEATURE, shape=(dim,), dtype="float16")
    spec = TeacherSpec(
        kind="made_up", name="benchmark", weights={}, settings={}, features=(feature,)
    )
    return TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=rows_per_shard, spec=spec)


def numbered_keys(start: int, stop: int) -> KeyArray:
    """Made-up keys [stop - start, 16], all different."""
    words = np.zeros((stop - start, 2), dtype=">u8")
    words[:, 1] = np.arange(start, stop)
    return words.view(np.uint8)


def write_cache(folder: Path, values: Values, rows_per_shard: int) -> None:
    """A cache of all rows in full shards, durable shard by shard."""
    with CacheWriter(folder, teacher(values.shape[1], rows_per_shard)) as writer:
        for start in range(0, len(values), rows_per_shard):
            rows = values[start : start + rows_per_shard]
            keys = numbered_keys(start, start + len(rows))
            writer.commit(keys, {FEATURE: rows}, np.zeros(len(rows), dtype=bool))


def _write(folder: Path, values: Values) -> None:
    write_cache(folder, values, SHARD_ROWS)


class Gather(Reader):
    """`cache[feature].gather(rows)`: numpy arrays."""

    name = "armada, gather"
    mapped = True

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        super().__init__(folder, rows, dim)
        self.feature = open_cache(folder)[FEATURE]

    def gather(self, rows: RowNumbers) -> Batch:
        return self.feature.gather(rows)

    def span(self, start: int, stop: int) -> Batch:
        return self.feature[start:stop]

    def shuffled(self, seed: int) -> Iterator[Batch]:
        order = BlockOrder(np.arange(self.rows), BLOCK_ROWS, WINDOW_BLOCKS)
        ahead = ReadAhead(self.feature.will_need)
        for rows in batches_of(ahead.planned(order.windows(seed, epoch=0)), BATCH_ROWS):
            ahead.start()
            yield self.gather(rows)

    def close(self) -> None:
        del self.feature


class Mapped(Selecting, Gather):
    """`torch.index_select` on the one array over all shards, where the cache can map them so."""

    name = "armada, mapped + index_select"

    @classmethod
    def unavailable(cls, folder: Path) -> str:
        mapped = open_cache(folder)[FEATURE].mapped
        return "" if mapped is not None else "the cache cannot be mapped as one array"

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        super().__init__(folder, rows, dim)
        self.tensor = torch.from_dlpack(self.feature.mapped)


FORMAT = Format(
    name="armada",
    modules=(),
    write=_write,
    readers=(Gather, Mapped, ZarrPython, Zarrs, TensorStore),
)
