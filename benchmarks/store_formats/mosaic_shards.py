"""mosaicml-streaming: MDS shards, read one by one; shuffled by the library itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .durable import sync_folder
from .reader import BATCH_ROWS, SHARD_ROWS, Batch, Format, Reader
from .source import RowNumbers, Values
from .streams import in_batches

COLUMN = "row"
SHARDS = "shards"
"""A folder of its own: the writer makes it."""


def _write(folder: Path, values: Values) -> None:
    from streaming import MDSWriter

    columns = {COLUMN: f"ndarray:float16:{values.shape[1]}"}
    size = SHARD_ROWS * values.shape[1] * values.itemsize
    with MDSWriter(out=str(folder / SHARDS), columns=columns, size_limit=size) as writer:
        for row in values:
            writer.write({COLUMN: row})
    sync_folder(folder)


class Mosaic(Reader):
    """`StreamingDataset` in this process, with its default settings."""

    name = "mosaicml-streaming"
    modules = ("streaming",)
    apart = True

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        super().__init__(folder, rows, dim)
        self._dataset = self._open(shuffle=False)

    def _open(self, **options: Any) -> Any:
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        # Two open datasets may not name one folder: memory the last one shared is cleared first.
        clean_stale_shared_memory()
        return StreamingDataset(local=str(self.folder / SHARDS), batch_size=BATCH_ROWS, **options)

    def gather(self, rows: RowNumbers) -> Batch:
        return np.stack([self._dataset[row][COLUMN] for row in rows.tolist()])

    def sequence(self) -> Iterator[Batch]:
        self._dataset = self._open(shuffle=False)
        return in_batches((sample[COLUMN] for sample in self._dataset), np.stack)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        self._dataset = self._open(shuffle=True, shuffle_seed=seed)
        return in_batches((sample[COLUMN] for sample in self._dataset), np.stack)

    def close(self) -> None:
        from streaming.base.util import clean_stale_shared_memory

        del self._dataset
        clean_stale_shared_memory()


FORMAT = Format(name="mosaicml-streaming", modules=("streaming",), write=_write, readers=(Mosaic,))
