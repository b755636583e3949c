"""Export to Parquet: the corpus's columns, the key, and what a feature is (`export_columns.py`).

A feature of several dimensions is one flat list in C order; its shape is in the metadata of the
field. Numbers are not encoded: they do not compress. Keys are hexadecimal, as people quote them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .export_rows import KEY_COLUMN, ExportRows

MAX_FILE_BYTES = 512 * 2**20

Advance = Callable[[int], None]


def write_parquet(folder: Path, rows: ExportRows, advance: Advance, stem: str = "part") -> None:
    """All rows as `<stem>-00000-of-00003.parquet`, ... in `folder`."""
    schema = _schema(rows)
    files = list(_files(rows))
    for number, slices in enumerate(files):
        path = folder / f"{stem}-{number:05d}-of-{len(files):05d}.parquet"
        with pq.ParquetWriter(path, schema, use_dictionary=list(rows.columns)) as writer:
            for part in slices:
                writer.write_table(
                    _table(rows, part, schema), row_group_size=part.stop - part.start
                )
                advance(part.stop - part.start)


def _files(rows: ExportRows) -> Iterator[list[slice]]:
    """The slices of each file."""
    slices: list[slice] = []
    ends, begun = rows.ends(), 0
    for part in rows.slices():
        slices.append(part)
        if ends[part.stop - 1] - begun >= MAX_FILE_BYTES:
            yield slices
            slices, begun = [], ends[part.stop - 1]
    if slices:
        yield slices


def _schema(rows: ExportRows) -> pa.Schema:
    fields = [pa.field(name, column.type) for name, column in rows.columns.items()]
    features = [field for feature in rows.features for field in feature.fields]
    return pa.schema([*fields, pa.field(KEY_COLUMN, pa.string()), *features])


def _table(rows: ExportRows, part: slice, schema: pa.Schema) -> pa.Table:
    columns = [column[part.start : part.stop] for column in rows.columns.values()]
    columns.append(pa.array([key.tobytes().hex() for key in rows.keys[part]], pa.string()))
    for feature in rows.features:
        columns += feature.read(rows.cache_rows[part])
    return pa.Table.from_arrays(columns, schema=schema)
