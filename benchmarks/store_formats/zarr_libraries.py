"""zarr-python, zarrs and tensorstore on the very files of our cache: any Zarr library reads them.

The rows of the array are ours only if all shards but the last are full, as here.
"""

from pathlib import Path
from typing import Any

from .reader import Batch, Reader
from .source import RowNumbers

FEATURE = "embedding"


def _array_folder(cache: Path) -> Path:
    (teacher,) = (cache / "teachers").glob(f"*/{FEATURE}")
    return teacher


class ZarrPython(Reader):
    """zarr-python with its own codecs."""

    name = "zarr-python, our files"
    modules = ("zarr",)
    codecs = "zarr.core.codec_pipeline.BatchedCodecPipeline"

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        import zarr

        super().__init__(folder, rows, dim)
        # The codecs are chosen when an array is opened.
        with zarr.config.set({"codec_pipeline.path": self.codecs}):
            self._array: Any = zarr.open_array(_array_folder(folder), mode="r")

    def gather(self, rows: RowNumbers) -> Batch:
        return self._array.oindex[rows]

    def span(self, start: int, stop: int) -> Batch:
        return self._array[start:stop]


class Zarrs(ZarrPython):
    """zarr-python with the codecs of zarrs, in Rust."""

    name = "zarrs, our files"
    modules = ("zarr", "zarrs")
    codecs = "zarrs.ZarrsCodecPipeline"


class TensorStore(Reader):
    """tensorstore with its default of no cache: the page cache is its cache."""

    name = "tensorstore, our files"
    modules = ("tensorstore",)

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        import tensorstore

        super().__init__(folder, rows, dim)
        store = {"driver": "file", "path": str(_array_folder(folder))}
        spec = {"driver": "zarr3", "kvstore": store}
        self._array: Any = tensorstore.open(spec, read=True, open=True).result()

    def gather(self, rows: RowNumbers) -> Batch:
        return self._array[rows].read().result()

    def span(self, start: int, stop: int) -> Batch:
        return self._array[start:stop].read().result()
