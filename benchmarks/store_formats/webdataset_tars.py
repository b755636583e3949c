"""webdataset: tar files, one member a row; no access by row number."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .durable import sync_folder
from .reader import BLOCK_ROWS, SHARD_ROWS, WINDOW_BLOCKS, Batch, Format, Reader
from .source import Values
from .streams import in_batches

MEMBER = "row"


def _write(folder: Path, values: Values) -> None:
    from webdataset import ShardWriter

    pattern = str(folder / "%06d.tar")
    with ShardWriter(pattern, maxcount=SHARD_ROWS, maxsize=2**40, verbose=0) as writer:
        for number, row in enumerate(values):
            writer.write({"__key__": f"{number:09d}", MEMBER: row.tobytes()})
    sync_folder(folder)


class WebDataset(Reader):
    """The pipeline in this process; shuffled by shard, then through a buffer of one window."""

    name = "webdataset"
    random = False

    def _open(self, **options: Any) -> Any:
        from webdataset import WebDataset

        tars = sorted(str(path) for path in self.folder.glob("*.tar"))
        return WebDataset(tars, empty_check=False, **options)

    def sequence(self) -> Iterator[Batch]:
        return in_batches(map(_row, self._open(shardshuffle=False)), np.stack)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        samples = self._open(shardshuffle=len(list(self.folder.glob("*.tar"))), seed=seed)
        buffered = samples.shuffle(WINDOW_BLOCKS * BLOCK_ROWS, seed=seed)
        return in_batches(map(_row, buffered), np.stack)


def _row(sample: dict[str, Any]) -> Any:
    return np.frombuffer(sample[MEMBER], dtype=np.float16)


FORMAT = Format(name="webdataset", modules=("webdataset",), write=_write, readers=(WebDataset,))
