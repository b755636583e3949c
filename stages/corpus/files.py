"""Read one corpus file or folder as an Arrow table of chosen columns.

Parquet, JSON lines, CSV (RFC 4180), TSV (fields are never quoted, a quotation mark is text), a
folder written by `datasets.save_to_disk`, or a folder of Parquet files. Anything fsspec opens,
compressed or not (`.gz`, `.bz2`, ...); folders are local.
"""

import difflib
import json
import lzma
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq
from fsspec.utils import infer_compression

from ...cache_schemas.errors import CorpusError

COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}

BLOCK_BYTES = 16 * 2**20
"""What is parsed at once of a text file; no row of it can be longer."""

_UNREADABLE = (
    *(OSError, EOFError, pa.ArrowException, ImportError),
    *(zlib.error, lzma.LZMAError),  # a damaged archive
    *(ValueError, KeyError),  # not the JSON of a saved dataset
)


def read_columns(
    source: str, text: Sequence[str], others: Sequence[str], optional: str
) -> pa.Table:
    """Columns `text` (never parsed as numbers) and `others`, and `optional` if it is there.

    Raises CorpusError if the source cannot be read or lacks a column."""
    path = Path(source)
    wanted = [*text, *others, optional]
    try:
        table = _read_folder(path, wanted) if path.is_dir() else _read_file(source, text, wanted)
    except _UNREADABLE as cause:
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise CorpusError(f"corpus {source}: cannot be read: {reason}") from cause
    _require_columns(source, table, [*text, *others])
    extra = [optional] if table.column_names.count(optional) == 1 else []
    return table.select(list(dict.fromkeys([*text, *others, *extra])))


def _require_columns(source: str, table: pa.Table, wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in table.column_names:
            near = difflib.get_close_matches(name, table.column_names, n=1)
            hint = f"; did you mean {near[0]!r}? It has" if near else "; it has"
            raise CorpusError(
                f"corpus {source}: no column {name!r}{hint} {', '.join(table.column_names)}"
            )
        if table.column_names.count(name) > 1:
            raise CorpusError(f"corpus {source}: has several columns {name!r}; rename all but one")


def _read_file(source: str, text: Sequence[str], wanted: Sequence[str]) -> pa.Table:
    readers: dict[str, Callable[[BinaryIO, Sequence[str]], pa.Table]] = {
        ".parquet": lambda file, _: _read_parquet(file, wanted),
        ".jsonl": _read_json,
        ".ndjson": _read_json,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_tsv,
    }
    name = source.partition("?")[0] if "://" in source else source
    suffixes = [suffix for suffix in Path(name).suffixes if suffix not in COMPRESSED]
    reader = readers.get(suffixes[-1].lower() if suffixes else "")
    if reader is None:
        raise CorpusError(
            f"corpus {source}: unknown kind of file; name a {', '.join(readers)} file or a folder"
        )
    with fsspec.open(source, "rb", compression=infer_compression(name)) as file:
        return reader(file, text)


def _read_parquet(file: BinaryIO | Path, wanted: Sequence[str]) -> pa.Table:
    """The wanted columns, with nothing in the others: beside its texts a file may hold features, or
    images, that do not fit into memory."""
    # Not `read_table`: its threads can abort a process that ends soon after (pyarrow 26).
    with pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        read = iter(parquet.read(columns=[name for name in names if name in wanted]).columns)
        nothing = pa.chunked_array([pa.nulls(parquet.metadata.num_rows)])
        columns = [next(read) if name in wanted else nothing for name in names]
    return pa.table(columns, names)


def _read_json(file: BinaryIO, text: Sequence[str]) -> pa.Table:
    options = pyarrow.json.ReadOptions(block_size=BLOCK_BYTES)
    table = pyarrow.json.read_json(file, options)
    # Texts stay texts, also where every one of them could be a date.
    dates = [field for field in table.schema if pa.types.is_timestamp(field.type)]
    strings = [pa.field(field.name, pa.string()) for field in dates if field.name in text]
    if not strings:
        return table
    file.seek(0)
    parse = pyarrow.json.ParseOptions(explicit_schema=pa.schema(strings))
    return pyarrow.json.read_json(file, options, parse)


def _read_csv(file: BinaryIO, text: Sequence[str], **parse: Any) -> pa.Table:
    options = pyarrow.csv.ParseOptions(newlines_in_values=True, **parse)
    # Texts stay texts: "12" is no number and "null" no missing value.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()))
    read = pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES)
    return pyarrow.csv.read_csv(file, read, options, convert)


def _read_tsv(file: BinaryIO, text: Sequence[str]) -> pa.Table:
    return _read_csv(file, text, delimiter="\t", quote_char=False)


def _read_folder(folder: Path, wanted: Sequence[str]) -> pa.Table:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        raise CorpusError(f"corpus {folder}: holds splits; name one: {', '.join(splits)}")
    if (folder / "state.json").is_file():
        return _read_saved_dataset(folder)
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise CorpusError(f"corpus {folder}: is neither a saved dataset nor holds *.parquet files")
    return pa.concat_tables([_read_parquet(file, wanted) for file in files])


def _read_saved_dataset(folder: Path) -> pa.Table:
    state = json.loads((folder / "state.json").read_bytes())
    tables = []
    for entry in state["_data_files"]:
        file = folder / Path(entry["filename"]).name
        with pa.memory_map(str(file)) as mapped:
            tables.append(pyarrow.ipc.open_stream(mapped).read_all())
    return pa.concat_tables(tables)
