"""The formats of `cache export`; each writes all rows into an empty folder.

To Parquet go the corpus's columns, the key, and what a feature is (`export_rows.py`). A feature of
several dimensions is one flat list in C order; its shape is in the metadata of the field. Numbers
are not encoded: they do not compress. Keys are hexadecimal, as people quote them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ...cache_schemas.errors import CorpusError
from .export_rows import KEY_COLUMN, ExportRows, FeatureColumns, OneRow

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


def write_datasets(folder: Path, rows: ExportRows, advance: Advance) -> None:
    """Parquet files, and a README.md that declares the train split."""
    (folder / "data").mkdir()
    write_parquet(folder / "data", rows, advance, stem="train")
    split = {"split": "train", "path": "data/train-*.parquet"}
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": [split]}]})
    (folder / "README.md").write_text(f"---\n{head}---\n\n{_told(rows)}", encoding="utf-8")


def _told(rows: ExportRows) -> str:
    lines = [_line(field, feature) for feature in rows.features for field in feature.fields]
    return (
        f"{len(rows)} texts with features of the frozen teacher {rows.teacher}, written by `armada "
        "cache export`. Features of several dimensions are flat, in C order.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _line(field: pa.Field, feature: FeatureColumns) -> str:
    spec = feature.spec
    what = f"{spec.dtype}{list(spec.shape)}" if field.name == spec.name else str(field.type)
    if isinstance(feature, OneRow) and (quantizer := feature.quantizer) is not None:
        what = f"{quantizer.precision} codes of {quantizer.width} numbers"
    each = f" for each of its {spec.axis}" if spec.axis and field.name == spec.name else ""
    return f"- `{field.name}`: {what}{each}{', ' if spec.description else ''}{spec.description}"


def write_npy(folder: Path, rows: ExportRows, advance: Advance) -> None:
    """One array a feature, one of the keys, and the ids as lines; of features of one row an
    example."""
    features = {each.spec.name: each for each in rows.features if isinstance(each, OneRow)}
    if rows.ids is not None:
        (folder / "ids.txt").write_bytes(_lines(rows.ids))
    np.save(folder / "keys.npy", rows.keys, allow_pickle=False)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((folder / f"features_{name}.npy").open("wb"))
            for name in features
        }
        for name, feature in features.items():
            _write_header(files[name], len(rows), feature)
        for part in rows.slices():
            for name, feature in features.items():
                values = feature.numbers(rows.cache_rows[part])
                little = values.dtype.newbyteorder("<")
                files[name].write(np.ascontiguousarray(values, dtype=little).data)
            advance(part.stop - part.start)


def _write_header(file: BinaryIO, rows: int, feature: OneRow) -> None:
    # The array is written as it comes, not mapped: where the disk is full, writing to a map kills
    # the process.
    none = feature.none
    shape, little = (rows, *none.shape[1:]), none.dtype.newbyteorder("<").str
    header = {"descr": little, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _lines(ids: pa.Array) -> bytes:
    """One id a line; refuses ids that would be ambiguous."""
    for row, value in enumerate(ids.to_pylist()):
        if not value or value.splitlines() != [value]:
            raise CorpusError(
                f"row {row + 1}: id {value!r} is no line of ids.txt; fix it, or leave the ids out "
                "with id_column=false"
            )
    return "".join(f"{value}\n" for value in ids.to_pylist()).encode()


WRITERS: Mapping[str, Callable[[Path, ExportRows, Advance], None]] = {
    "parquet": write_parquet,
    "datasets": write_datasets,
    "npy": write_npy,
}
