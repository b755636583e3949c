"""The formats that `store.py` compares: one file each, that writes the rows and reads them back."""

from importlib import import_module

from . import (
    armada_cache,
    arrow_datasets,
    litdata_chunks,
    mosaic_shards,
    parquet_files,
    raw_file,
    webdataset_tars,
)
from .reader import Format

FORMATS: tuple[Format, ...] = (
    armada_cache.FORMAT,
    raw_file.FORMAT,
    parquet_files.FORMAT,
    arrow_datasets.FORMAT,
    litdata_chunks.FORMAT,
    mosaic_shards.FORMAT,
    webdataset_tars.FORMAT,
)


def missing(modules: tuple[str, ...]) -> str:
    """Why not all of `modules` can be imported; "" if they can. They are imported after this."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as cause:
            return f"{module}: {cause}"
    return ""
