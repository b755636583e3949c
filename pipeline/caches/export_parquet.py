"""Export to Parquet: the corpus's columns, the key, and each feature as a list of fixed size.

A feature of several dimensions is one flat list in C order; its shape is in the metadata of the
field. Numbers are not encoded: they do not compress. Keys are hexadecimal, as people quote them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...cache_schemas.features import FeatureSpec
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
    for part in rows.slices():
        slices.append(part)
        if (part.stop - slices[0].start) * rows.row_bytes >= MAX_FILE_BYTES:
            yield slices
            slices = []
    if slices:
        yield slices


def _schema(rows: ExportRows) -> pa.Schema:
    fields = [pa.field(name, column.type) for name, column in rows.columns.items()]
    features = [_field(feature.spec) for feature in rows.features.values()]
    return pa.schema([*fields, pa.field(KEY_COLUMN, pa.string()), *features])


def _field(spec: FeatureSpec) -> pa.Field:
    kind = pa.from_numpy_dtype(np.dtype(spec.dtype))
    if not spec.shape:
        return pa.field(spec.name, kind)
    flat = pa.list_(kind, spec.values_per_row)
    shape = {"shape": json.dumps(spec.shape)} if len(spec.shape) > 1 else None
    return pa.field(spec.name, flat, metadata=shape)


def _table(rows: ExportRows, part: slice, schema: pa.Schema) -> pa.Table:
    columns = [column[part.start : part.stop] for column in rows.columns.values()]
    columns.append(pa.array([key.tobytes().hex() for key in rows.keys[part]], pa.string()))
    for feature in rows.features.values():
        values = pa.array(feature.gather(rows.cache_rows[part]).reshape(-1))
        kind = schema.field(feature.spec.name).type
        if feature.spec.shape:
            values = pa.FixedSizeListArray.from_arrays(values, type=kind)
        columns.append(values)
    return pa.Table.from_arrays(columns, schema=schema)
