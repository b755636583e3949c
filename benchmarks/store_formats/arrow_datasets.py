"""Arrow as `datasets` writes and maps it."""

from pathlib import Path
from typing import Any

import torch

from .durable import sync_folder
from .reader import Batch, Format, Reader
from .source import RowNumbers, Values

FILE = "rows.arrow"
COLUMN = "embedding"
WRITE_ROWS = 1000
"""Rows of one record batch; the default of `datasets`."""


def _write(folder: Path, values: Values) -> None:
    import pyarrow as pa
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    dim = values.shape[1]
    features = Features({COLUMN: List(Value("float16"), length=dim)})
    with ArrowWriter(features=features, path=str(folder / FILE)) as writer:
        for start in range(0, len(values), WRITE_ROWS):
            flat = pa.array(values[start : start + WRITE_ROWS].reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, dim)
            writer.write_table(pa.table({COLUMN: column}))
        writer.finalize()
    sync_folder(folder)


class _Dataset(Reader):
    modules = ("datasets",)

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        from datasets import Dataset

        super().__init__(folder, rows, dim)
        self._dataset: Any = self._formatted(Dataset.from_file(str(folder / FILE)))

    def _formatted(self, dataset: Any) -> Any:
        raise NotImplementedError

    def _values(self, batch: Any) -> Batch:
        raise NotImplementedError

    def gather(self, rows: RowNumbers) -> Batch:
        return self._values(self._dataset[rows])

    def span(self, start: int, stop: int) -> Batch:
        return self._values(self._dataset[start:stop])

    def close(self) -> None:
        del self._dataset


class DatasetsTorch(_Dataset):
    """`with_format("torch")`, told to keep float16: it casts to float32 otherwise."""

    name = "datasets, torch"

    def _formatted(self, dataset: Any) -> Any:
        return dataset.with_format("torch", dtype=torch.float16)

    def _values(self, batch: Any) -> Batch:
        return batch[COLUMN]


class DatasetsArrow(_Dataset):
    """`with_format("arrow")`, and numpy over Arrow's memory by hand."""

    name = "datasets, arrow to numpy"

    def _formatted(self, dataset: Any) -> Any:
        return dataset.with_format("arrow")

    def span(self, start: int, stop: int) -> Batch:
        return super().span(start, stop).copy()

    def _values(self, batch: Any) -> Batch:
        # Rows taken at random are as many chunks, which Arrow copies to one.
        return batch[COLUMN].combine_chunks().flatten().to_numpy().reshape(-1, self.dim)


FORMAT = Format(
    name="Arrow (datasets)",
    modules=("datasets",),
    write=_write,
    readers=(DatasetsTorch, DatasetsArrow),
)
