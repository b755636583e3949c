"""The formats of `cache export`; each writes all rows into an empty folder."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import yaml

from ...cache_schemas.errors import CorpusError
from ...cache_schemas.features import FeatureSpec
from ...stages.store.reading.feature_array import FeatureArray
from .export_columns import OneRow
from .export_parquet import write_parquet
from .export_rows import ExportRows

Advance = Callable[[int], None]


def write_datasets(folder: Path, rows: ExportRows, advance: Advance) -> None:
    """Parquet files, and a README.md that says where the train split is."""
    (folder / "data").mkdir()
    write_parquet(folder / "data", rows, advance, stem="train")
    split = {"split": "train", "path": "data/train-*.parquet"}
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": [split]}]})
    (folder / "README.md").write_text(f"---\n{head}---\n\n{_told(rows)}", encoding="utf-8")


def _told(rows: ExportRows) -> str:
    lines = [_line(field, feature.spec) for feature in rows.features for field in feature.fields]
    return (
        f"{len(rows)} texts with features of the frozen teacher {rows.teacher}, written by `armada "
        "cache export`. Features of several dimensions are flat, in C order.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _line(field: pa.Field, spec: FeatureSpec) -> str:
    what = f"{spec.dtype}{list(spec.shape)}" if field.name == spec.name else str(field.type)
    each = f" for each of its {spec.axis}" if spec.axis and field.name == spec.name else ""
    return f"- `{field.name}`: {what}{each}{', ' if spec.description else ''}{spec.description}"


def write_npy(folder: Path, rows: ExportRows, advance: Advance) -> None:
    """One array a feature, one of the keys, and the ids as lines; of features of one row an
    example."""
    one_row = [each.feature for each in rows.features if isinstance(each, OneRow)]
    features = {feature.spec.name: feature for feature in one_row}
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
                little = feature.dtype.newbyteorder("<")
                values = feature.gather(rows.cache_rows[part]).astype(little, copy=False)
                files[name].write(values.data)
            advance(part.stop - part.start)


def _write_header(file: BinaryIO, rows: int, feature: FeatureArray) -> None:
    # The array is written as it comes, not mapped: where the disk is full, writing to a map kills
    # the process.
    shape = (rows, *feature.spec.shape)
    little = feature.dtype.newbyteorder("<").str
    header = {"descr": little, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _lines(ids: pa.Array) -> bytes:
    """One id a line; refuses what could not be told apart again."""
    for row, value in enumerate(ids.to_pylist()):
        if not value or value.splitlines() != [value]:
            raise CorpusError(
                f"row {row + 1}: id {value!r} is no line of ids.txt; mend it, or leave the ids out "
                "with id_column=false"
            )
    return "".join(f"{value}\n" for value in ids.to_pylist()).encode()


WRITERS: Mapping[str, Callable[[Path, ExportRows, Advance], None]] = {
    "parquet": write_parquet,
    "datasets": write_datasets,
    "npy": write_npy,
}
