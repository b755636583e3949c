"""Reading the corpora of a job: the chosen columns as Arrow tables, a block of rows at a time.

Parquet, JSON (lines, or one array), CSV (RFC 4180), TSV (fields are never quoted, a quotation mark
is text), folders written by `datasets.save_to_disk`, folders of files, globs, data sets of the hub
(`hf-dataset:NAME?split=train`), and tables in memory. Anything fsspec opens, compressed or not
(`.gz`, `.bz2`, ...); folders are local. Memory: a block of a file, 8,192 rows or 16 MiB; of a CSV
with labels, whose type depends on all rows, the file.

A column is one by its name, or a field of a nested one: `translation.en` is the field `en` of a
struct `translation`, unless there is a column of just that name.
"""

import difflib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from ...cache_schemas.errors import ArmadaError, CorpusError, shown_url, without_user
from ...cache_schemas.locations import InMemory
from .hub_datasets import HUB_DATASET, dataset_table, is_dataset, open_hub_dataset
from .json_files import read_json, rows_within
from .located import SAVED, kind_of, located
from .text_files import (
    TextFormat,
    is_plain_file,
    opened,
    read_csv,
    read_tsv,
    several_in_one,
)


@dataclass(frozen=True, slots=True)
class Column:
    """The way to a column from the top, and its type."""

    path: tuple[str, ...]
    type: pa.DataType

    @property
    def root(self) -> str:
        """The top-level column that holds it."""
        return self.path[0]

    def of(self, table: pa.Table) -> pa.ChunkedArray:
        """Its values; null where a struct on the way is."""
        whole = table[self.root]
        return pc.struct_field(whole, list(self.path[1:])) if self.path[1:] else whole


def find(schema: pa.Schema, name: str) -> Column | None:
    """The column or nested field of that name; None if there is none."""
    if name in schema.names:
        kinds = [field.type for field in schema if field.name == name]
        return Column((name,), kinds[0])
    for root in sorted(schema.names, key=len, reverse=True):
        if name.startswith(f"{root}.") and schema.names.count(root) == 1:
            found = _field(schema.field(root).type, name[len(root) + 1 :])
            if found is not None:
                return Column((root, *found.path), found.type)
    return None


def _field(kind: pa.DataType, name: str) -> Column | None:
    if not pa.types.is_struct(kind):
        return None
    return find(pa.schema(list(kind)), name)


def require(source: str, schema: pa.Schema, names: Sequence[str]) -> dict[str, Column]:
    """The columns of those names; raises CorpusError for one that is not there, or there twice."""
    found: dict[str, Column] = {}
    for name in names:
        column = find(schema, name)
        if column is None:
            raise CorpusError(f"corpus {source}: no column {name!r}{_hint(schema, name)}")
        if schema.names.count(column.root) > 1:
            raise CorpusError(f"corpus {source}: has several columns {name!r}; rename all but one")
        found[name] = column
    return found


def _hint(schema: pa.Schema, name: str) -> str:
    known = schema.names
    root = name.partition(".")[0]
    if root != name and known.count(root) == 1:
        kind = schema.field(root).type
        fields = fields_of(root, kind)
        return f"; column {root!r} holds {f'the fields {fields}' if fields else f'{kind}'}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"{f'; did you mean {near[0]!r}? It has' if near else '; it has'} {', '.join(known)}"


def fields_of(name: str, kind: pa.DataType) -> str:
    """The fields of a struct as a text column would name them; empty for any other type."""
    if not pa.types.is_struct(kind):
        return ""
    return ", ".join(f"{name}.{field.name}" for field in kind)


_READERS: dict[str, Callable[[str, TextFormat, Sequence[str], bool], Iterator[pa.Table]]] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
KINDS = (".parquet", *_READERS)

_UNREADABLE = (
    *(OSError, EOFError, pa.ArrowException, ImportError),
    *(zlib.error, lzma.LZMAError),  # a damaged archive
    *(ValueError, KeyError, LookupError),  # not the JSON of a saved dataset; no such encoding
)


_BLOCK_ROWS = 8192
_BUFFER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Wanted:
    """Columns to read: those of texts, of labels, of ids, ids that may be missing, and weights;
    `labels_are_text`: whatever they look like."""

    text: Sequence[str]
    labels: Sequence[str]
    ids: str | None
    optional: str
    labels_are_text: bool = False
    weights: str | None = None

    def columns(self, source: str, schema: pa.Schema) -> dict[str, Column]:
        """Positions of the columns; raises CorpusError for a missing one."""
        more = [name for name in (self.ids, self.weights) if name is not None]
        found = require(source, schema, [*self.text, *self.labels, *more])
        if schema.names.count(self.optional) == 1:
            found.setdefault(
                self.optional, Column((self.optional,), schema.field(self.optional).type)
            )
        return found

    @property
    def plain(self) -> list[str]:
        """Columns of which every value is a text, whatever it looks like."""
        plain = [*self.text, self.ids or self.optional]
        if self.labels_are_text:
            return [*plain, *self.labels]
        return [name for name in plain if name not in self.labels]

    @property
    def typed(self) -> bool:
        """Whether a column has a type that depends on all rows of a file."""
        return bool(self.labels and not self.labels_are_text) or self.weights is not None


def require_use(form: TextFormat, sources: Sequence[str]) -> None:
    """Raises CorpusError for an encoding or a delimiter where no file of `sources` has one."""
    kinds = {kind for source in sources for kind in _kinds(source)}
    read_as = {"encoding": tuple(_READERS), "delimiter": (".csv", ".tsv")}
    for name, of_use in read_as.items():
        value = getattr(form, name)
        if value is not None and kinds and not kinds & {*of_use, ""}:
            raise CorpusError(
                f"{name} {value!r}: applies only to {', '.join(of_use)} files, and the corpus is "
                f"{', '.join(sorted(kinds))}; leave it out"
            )


def _kinds(source: str) -> set[str]:
    """The kinds of files that a source means; that of one which is still to be found is empty."""
    if isinstance(source, InMemory) or source.startswith(HUB_DATASET):
        return {"a table"}
    if "://" in source:
        return {kind_of(source)} & {*KINDS, ""}
    try:
        files = located(source, KINDS)
    except CorpusError:
        return {""}  # reported when it is read
    return {"a saved data set" if Path(file).is_dir() else kind_of(file) for file in files}


def is_at_hand(source: str) -> bool:
    """Whether a source is a table in memory, or its first file one of this machine that can be read
    again. Raises CorpusError if it means no file."""
    if isinstance(source, InMemory):
        return True
    if "://" in source or source.startswith(HUB_DATASET):
        return False
    return Path(located(source, KINDS)[0]).is_file()


def read_blocks(source: str, wanted: Wanted, form: TextFormat) -> Iterator[tuple[str, pa.Table]]:
    """The rows of the files of a source, block by block, each with its file's name and its wanted
    columns; of each file at least one.

    Raises CorpusError if one cannot be read or lacks a column."""
    name = shown_url(source)
    try:
        if isinstance(source, InMemory):
            yield from _named(name, _from_memory(name, source.table, wanted))
        elif source.startswith(HUB_DATASET):
            yield from _named(name, _from_memory(name, open_hub_dataset(source), wanted))
        else:
            for file in located(source, KINDS):
                name = shown_url(file)
                yield from _named(name, _read(file, wanted, form))
    except ArmadaError:
        raise
    except Exception as cause:
        # The library behind a URL may raise anything.
        if not isinstance(cause, _UNREADABLE) and "://" not in source:
            raise
        reason = without_user(_reason(cause), source)
        # Nor may a traceback quote secrets.
        known = cause if reason == _reason(cause) else None
        raise CorpusError(f"corpus {name}: cannot be read: {reason}") from known


def _named(name: str, tables: Iterator[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    return ((name, table) for table in tables)


def _reason(cause: BaseException) -> str:
    if isinstance(cause, FileNotFoundError):
        return "there is no such file"
    first = (str(cause).splitlines() or [type(cause).__name__])[0]
    return " ".join(str(cause).split()) if first.endswith(":") else first


def _read(file: str, wanted: Wanted, form: TextFormat) -> Iterator[pa.Table]:
    path, kind = Path(file), kind_of(file)
    if (path / SAVED).is_file():
        table = _read_saved_dataset(path)
        return _blocks(table, wanted.columns(shown_url(file), table.schema))
    if kind == ".parquet":
        return _read_parquet(file, wanted)
    if kind in _READERS and not path.is_dir():
        return _read_text_file(file, kind, wanted, form)
    what = "is a folder; name the files in it" if path.is_dir() else "unknown kind of file; name a "
    more = "" if path.is_dir() else f"{', '.join(KINDS)} file or a folder"
    raise CorpusError(f"corpus {shown_url(file)}: {what}{more}")


def _read_text_file(file: str, kind: str, wanted: Wanted, form: TextFormat) -> Iterator[pa.Table]:
    columns: dict[str, Column] | None = None
    for table in _READERS[kind](file, form, wanted.plain, wanted.typed):
        if columns is None:
            name = wanted.text[0]
            remedy = several_in_one(table.column_names) or rows_within(table.schema, name)
            if remedy and find(table.schema, name) is None:
                raise CorpusError(
                    f"corpus {shown_url(file)}: no column {name!r}; it has "
                    f"{', '.join(table.column_names)}; {remedy}"
                )
            columns = wanted.columns(shown_url(file), table.schema)
        yield _selected(table, columns)


def _selected(table: pa.Table, columns: dict[str, Column]) -> pa.Table:
    if not columns:
        return table.select([])
    return pa.table({name: column.of(table) for name, column in columns.items()})


def _blocks(table: pa.Table, columns: dict[str, Column]) -> Iterator[pa.Table]:
    """Blocks of a table that is mapped or in memory."""
    yield _selected(table.slice(0, 0), columns)
    for start in range(0, len(table), _BLOCK_ROWS):
        yield _selected(table.slice(start, _BLOCK_ROWS), columns)


def _read_parquet(file: str, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted columns only: besides texts, a file may hold features or images that do not fit
    into memory."""
    if is_plain_file(file):
        with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES) as parquet:
            yield from _columns_of(parquet, file, wanted, threads=True)
        return
    # Threads that read a Python file can abort a process that ends soon after (pyarrow 26).
    with opened(file) as remote, pq.ParquetFile(remote, buffer_size=_BUFFER_BYTES) as parquet:
        yield from _columns_of(parquet, file, wanted, threads=False)


def _columns_of(
    parquet: pq.ParquetFile, file: str, wanted: Wanted, threads: bool
) -> Iterator[pa.Table]:
    columns = wanted.columns(shown_url(file), parquet.schema_arrow)
    roots = list(dict.fromkeys(column.root for column in columns.values()))
    yield _selected(parquet.schema_arrow.empty_table(), columns)
    for batch in parquet.iter_batches(_BLOCK_ROWS, columns=roots, use_threads=threads):
        yield _selected(pa.Table.from_batches([batch]), columns)


def _read_saved_dataset(folder: Path) -> pa.Table:
    state = json.loads((folder / SAVED).read_bytes())
    tables = []
    for entry in state["_data_files"]:
        file = folder / Path(entry["filename"]).name
        with pa.memory_map(str(file)) as mapped:
            tables.append(pyarrow.ipc.open_stream(mapped).read_all())
    return pa.concat_tables(tables)


def _from_memory(name: str, table: Any, wanted: Wanted) -> Iterator[pa.Table]:
    if not is_dataset(table):
        return _blocks(table, wanted.columns(name, table.schema))
    columns = wanted.columns(name, table.features.arrow_schema)
    roots = list(dict.fromkeys(column.root for column in columns.values()))
    return _blocks(dataset_table(table, roots), columns)
