"""litdata: chunks of serialized tensors, read one by one; shuffled by litdata itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .durable import sync_folder
from .reader import SHARD_ROWS, Batch, Format, Reader
from .source import RowNumbers, Values
from .streams import in_batches


def _write(folder: Path, values: Values) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_size=SHARD_ROWS)
    for number, row in enumerate(torch.from_numpy(values)):
        cache[number] = row
    cache.done()
    cache.merge(1)
    sync_folder(folder)


class LitData(Reader):
    """`StreamingDataset` in this process, without workers (workers were slower still)."""

    name = "litdata"
    modules = ("litdata",)
    apart = True

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        super().__init__(folder, rows, dim)
        self._dataset = self._open(shuffle=False)

    def _open(self, **options: Any) -> Any:
        from litdata import StreamingDataset

        return StreamingDataset(str(self.folder), **options)

    def gather(self, rows: RowNumbers) -> Batch:
        return torch.stack([self._dataset[row] for row in rows.tolist()])

    def sequence(self) -> Iterator[Batch]:
        return in_batches(self._open(shuffle=False), torch.stack)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        return in_batches(self._open(shuffle=True, seed=seed), torch.stack)

    def close(self) -> None:
        del self._dataset


FORMAT = Format(name="litdata", modules=("litdata",), write=_write, readers=(LitData,))
