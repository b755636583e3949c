"""Features that were computed elsewhere, in common layouts.

A source is joined to a corpus by the ids of both or by the order of rows. Nothing is unpickled; the
size in a file's header is checked before memory is allocated.

npy_per_example   a folder of .npy files, one per example         parquet   a list column of files,
npy_rows          one .npy array for all of them                           read forward in batches
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...cache_schemas.errors import CorpusError, JobError
from ...stages.corpus.corpus import Corpus
from ...stages.store.format.rows import Rows
from ...stages.store.format.zarr_shards import DenseArray

BATCH_ROWS = 2048
"""Rows of Parquet read at a time."""
SUFFIX = ".npy"
_MALFORMED = (OSError, ValueError, EOFError, TypeError, RecursionError)
_NUMBERS = (pa.float16(), pa.float32(), pa.float64())
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class FeatureSource(ABC):
    """Positions 0 to `count` - 1, each with the features of one example.

    `layout`: its name in the teacher's settings; `shape` and `dtype`: of one example;
    `position_of_row`: position for each row of the corpus, -1 for one without features here."""

    layout: ClassVar[str]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    count: int
    position_of_row: Rows

    @abstractmethod
    def take(self, indices: Rows) -> tuple[DenseArray, dict[int, str]]:
        """The features at ascending positions [B] as [B, *shape], and problems: position ->
        problem; values there are undefined."""


def check_dtype(dtype: np.dtype[Any], where: object, stored: str | None) -> None:
    """Refuse dtypes other than float16, float32, and float64 with a `store_dtype`."""
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise CorpusError(f"{where}: holds {dtype}; features are float16, float32 or float64")
    if dtype.itemsize == 8 and stored is None:
        raise CorpusError(
            f"{where}: holds float64, which is not a cache dtype; set store_dtype=float32 or "
            "store_dtype=float16"
        )


def _require_ids(corpus: Corpus) -> pa.Array:
    """The ids of a corpus, one for every row; raises JobError or CorpusError."""
    if corpus.ids is None:
        raise JobError(
            "job key 'id_column' is missing (column of unique ids); features are matched by it"
        )
    if corpus.ids.null_count:
        row = int(np.flatnonzero(corpus.ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise CorpusError(f"{corpus.where(row)}: has no id to match its features by")
    return corpus.ids


def _find_ids(corpus: Corpus, known: pa.Array, where: object) -> Rows:
    """The index of each row's id among `known` ones [count]; -1 if it is not among them.

    Raises CorpusError for a repeated id."""
    wanted = _require_ids(corpus)
    if pc.count_distinct(known, mode="all").as_py() != len(known):
        counts = pc.value_counts(known)
        twice = next(entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1)
        raise CorpusError(f"{where}: id {twice!r} is there twice; each id has one array")
    found = pc.index_in(wanted, value_set=known).fill_null(-1)
    rows: Rows = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def _in_row_order(corpus: Corpus, count: int, where: object) -> Rows:
    """Position i is row i of the corpus's file, or files one after another; raises CorpusError if
    the counts differ."""
    rows = len(corpus) + len(corpus.skipped)
    if rows != count:
        raise CorpusError(
            f"{where}: has {count} rows, the corpus {rows}; to join them by ids, name a file with "
            "one id a line (job key 'ids')"
        )
    if len(corpus.sources) == 1:
        return corpus.number_of_row
    if corpus.skipped:
        raise CorpusError(
            f"{corpus.skipped[0]}: where rows are left out, several corpus files cannot be joined "
            "by row order; name one file, or a file of ids (job key 'ids')"
        )
    return np.arange(count, dtype=np.int64)


def _described(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Shape and dtype for messages."""
    return f"{dtype}{list(shape)}"


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """Header of a .npy file, whose size has been checked."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    offset: int

    def map(self) -> DenseArray:
        """The array, read when it is touched."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)

    def read(self) -> DenseArray:
        """The array."""
        count = math.prod(self.shape)
        values = np.fromfile(self.path, self.dtype, count, offset=self.offset)
        return values.reshape(self.shape, order=self.order)


def _read_header(path: Path) -> NpyHeader:
    """Raises CorpusError for a file that is not an array, or shorter than its header says."""
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = _parse(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except _MALFORMED as cause:
        reason = " ".join(str(cause).split())
        raise CorpusError(f"{path}: is no .npy array: {reason:.200}") from cause
    if dtype.hasobject:
        raise CorpusError(f"{path}: holds Python objects, which are never read; save numbers")
    if min(shape, default=1) < 0 or offset + math.prod(shape) * dtype.itemsize > size:
        raise CorpusError(f"{path}: is shorter than the {_described(shape, dtype)} of its header")
    return NpyHeader(path, shape, dtype, "F" if fortran else "C", offset)


def _parse(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"format version {version} is for arrays with named fields")


class NpyPerExample(FeatureSource):
    """A folder with a file `<id>.npy` for each example; the position of a row is the row itself."""

    layout = "npy_per_example"

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        names = [_file_name(corpus, row, name) for row, name in enumerate(_ids(corpus))]
        with os.scandir(folder) as entries:
            files = {entry.name for entry in entries if entry.name.endswith(SUFFIX)}
        self._files = [folder / name for name in names]
        self.count = len(files)
        there = np.array([name in files for name in names], dtype=bool)
        self.position_of_row = np.where(there, np.arange(len(names)), -1)
        first = self._first(np.flatnonzero(there))
        self.shape, self.dtype = first.shape, first.dtype

    def _first(self, indices: Rows) -> NpyHeader:
        if not len(indices):
            raise CorpusError(
                f"{self._files[0].parent}: none of its {self.count} {SUFFIX} files is named after "
                f"an id of the corpus, such as {self._files[0].name}"
            )
        for index in indices.tolist():
            with suppress(CorpusError):
                return _read_header(self._files[index])
        return _read_header(self._files[indices[0]])  # raises its error

    def take(self, indices: Rows) -> tuple[DenseArray, dict[int, str]]:
        """One file after another."""
        values = np.zeros((len(indices), *self.shape), self.dtype)
        problems = {}
        for position, index in enumerate(indices.tolist()):
            try:
                values[position] = self._read(self._files[index])
            except CorpusError as error:
                problems[position] = str(error)
        return values, problems

    def _read(self, path: Path) -> DenseArray:
        header = _read_header(path)
        if (header.shape, header.dtype) != (self.shape, self.dtype):
            raise CorpusError(
                f"{path}: holds {_described(header.shape, header.dtype)}, others "
                f"{_described(self.shape, self.dtype)}"
            )
        return header.read()


def _ids(corpus: Corpus) -> list[str]:
    ids: list[str] = _require_ids(corpus).to_pylist()
    return ids


def _file_name(corpus: Corpus, row: int, name: str) -> str:
    if not name or any(sign in name for sign in "/\\\0"):
        raise CorpusError(f"{corpus.where(row)}: its id is not valid as a file name; change the id")
    return name + SUFFIX


class NpyRows(FeatureSource):
    """One array [N, *shape], in the order of the corpus or of a file with one id a line."""

    layout = "npy_rows"

    def __init__(self, path: Path, corpus: Corpus, ids: Path | None) -> None:
        header = _read_header(path)
        if not header.shape or 0 in header.shape:
            raise CorpusError(f"{path}: holds {_described(header.shape, header.dtype)}, not rows")
        self.count, *shape = header.shape
        self.shape, self.dtype = tuple(shape), header.dtype
        self._header = header
        if ids is None:
            self.position_of_row = _in_row_order(corpus, self.count, path)
        else:
            self.position_of_row = _find_ids(corpus, _lines(ids, path, self.count), ids)

    def take(self, indices: Rows) -> tuple[DenseArray, dict[int, str]]:
        """Mapped rows."""
        return self._values[indices], {}

    @cached_property
    def _values(self) -> DenseArray:
        return self._header.map()


def _lines(file: Path, array: Path, count: int) -> pa.Array:
    try:
        # Not `splitlines`: an id may hold what Unicode takes for the end of a line.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise CorpusError(f"{file}: cannot be read: {cause}") from cause
    if len(lines) != count:
        raise CorpusError(f"{file}: has {len(lines)} lines, {array} {count} rows")
    return pa.array([line.removesuffix("\r") for line in lines], pa.string())


class ParquetRows(FeatureSource):
    """A column of lists of one length, or of single numbers."""

    layout = "parquet"

    def __init__(self, source: Path, column: str, corpus: Corpus, id_column: str | None) -> None:
        """`id_column`: where the ids of the rows are; None if the rows are those of the corpus."""
        self._files, self._column, self._name = parquet_files(source), column, str(source)
        self._kind = self._type_of(column)
        self.dtype = np.dtype(self._number_type().to_pandas_dtype())
        with self._readable():
            self.count = sum(pq.read_metadata(file).num_rows for file in self._files)
        self._rewind()
        self.shape = () if self._kind in _NUMBERS else (self._first_length(),)
        if id_column is None:
            self.position_of_row = _in_row_order(corpus, self.count, source)
        else:
            self.position_of_row = _find_ids(corpus, self._read_ids(id_column), source)

    def take(self, indices: Rows) -> tuple[DenseArray, dict[int, str]]:
        """Batches between the first and the last position; back to the start only if needed."""
        values = np.zeros((len(indices), *self.shape), self.dtype)
        problems: dict[int, str] = {}
        done = 0
        while done < len(indices):
            self._move_to(int(indices[done]))
            end = int(np.searchsorted(indices, self._stop))
            rows = self._batch.take(pa.array(indices[done:end] - self._start))
            wrong = self._fill(values[done:end], rows)
            problems |= {done + position: problem for position, problem in wrong.items()}
            done = end
        return values, problems

    def _fill(self, values: DenseArray, rows: pa.Array) -> dict[int, str]:
        """A number that is null becomes NaN, which is found with the other ones."""
        if not self.shape:
            values[:] = rows.to_numpy(zero_copy_only=False)
            return {}
        lengths = pc.list_value_length(rows).fill_null(-1).to_numpy()
        right = lengths == self.shape[0]
        flat = rows.filter(pa.array(right)).flatten()
        values[right] = flat.to_numpy(zero_copy_only=False).reshape(-1, *self.shape)
        return {
            position: "holds no list"
            if lengths[position] < 0
            else f"holds {lengths[position]} numbers, the first row {self.shape[0]}"
            for position in np.flatnonzero(~right).tolist()
        }

    def _number_type(self) -> pa.DataType:
        number = self._kind
        if any(is_list(number) for is_list in _LISTS):
            number = number.value_type
        if number not in _NUMBERS:
            raise CorpusError(
                f"{self._name}: column {self._column!r} holds {self._kind}; features are lists of "
                "float16, float32 or float64, or single ones"
            )
        return number

    def _first_length(self) -> int:
        for batch in self._batches:
            lengths = pc.list_value_length(batch).drop_null()
            if len(lengths):
                self._rewind()
                return int(lengths[0].as_py())
        raise CorpusError(f"{self._name}: column {self._column!r} holds no list")

    def _rewind(self) -> None:
        self._batches = self._read()
        self._batch = pa.array([], self._kind)
        self._start = self._stop = 0

    def _move_to(self, index: int) -> None:
        if index < self._start:
            self._rewind()
        while index >= self._stop:
            self._batch = next(self._batches)
            self._start, self._stop = self._stop, self._stop + len(self._batch)

    def _read(self) -> Iterator[pa.Array]:
        for file in self._files:
            with self._readable(), pq.ParquetFile(file, memory_map=True) as parquet:
                for batch in parquet.iter_batches(
                    BATCH_ROWS, columns=[self._column], use_threads=False
                ):
                    yield batch.column(0)

    def _read_ids(self, column: str) -> pa.Array:
        self._type_of(column)
        with self._readable():
            parts = [pq.ParquetFile(file).read(columns=[column]) for file in self._files]
            ids = pa.concat_tables(parts)[column].cast(pa.string())
        return ids.combine_chunks()

    def _type_of(self, column: str) -> pa.DataType:
        """The type of a column, which is the same in all files."""
        kinds = {}
        for file in self._files:
            with self._readable():
                schema = pq.read_schema(file)
            if column not in schema.names:
                raise CorpusError(f"{file}: no column {column!r}; it has {', '.join(schema.names)}")
            kinds[schema.field(column).type] = file
        if len(kinds) > 1:
            listed = ", ".join(f"{kind} in {file.name}" for kind, file in kinds.items())
            raise CorpusError(f"{self._name}: column {column!r} is {listed}; make it one type")
        return next(iter(kinds))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as cause:
            reason = str(cause).partition("\n")[0]
            raise CorpusError(f"{self._name}: cannot be read: {reason}") from cause


def parquet_files(source: Path) -> list[Path]:
    """A file, or those of a folder in the order in which a corpus reads them."""
    source = source.absolute()  # Arrow takes a relative path such as s3:/bucket for a URL
    return sorted(source.glob("*.parquet")) if source.is_dir() else [source]
