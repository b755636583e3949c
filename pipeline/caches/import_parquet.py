"""Features in a list column of Parquet files, read forward, one batch at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...cache_schemas.errors import CorpusError
from ...stages.corpus.corpus import Corpus
from ...stages.store.format.dense import DenseArray
from ...stages.store.format.index import Rows
from .import_source import FeatureSource, find_ids, in_row_order

BATCH_ROWS = 2048
_NUMBERS = (pa.float16(), pa.float32(), pa.float64())
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def parquet_files(source: Path) -> list[Path]:
    """A file, or those of a folder in the order in which a corpus reads them."""
    source = source.absolute()  # Arrow takes a relative path such as s3:/bucket for a URL
    return sorted(source.glob("*.parquet")) if source.is_dir() else [source]


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
            self.place_of_row = in_row_order(corpus, self.count, source)
        else:
            self.place_of_row = find_ids(corpus, self._read_ids(id_column), source)

    def take(self, places: Rows) -> tuple[DenseArray, dict[int, str]]:
        """Batches between the first and the last place; back to the start only if need be."""
        values = np.zeros((len(places), *self.shape), self.dtype)
        problems: dict[int, str] = {}
        done = 0
        while done < len(places):
            self._move_to(int(places[done]))
            end = int(np.searchsorted(places, self._stop))
            rows = self._batch.take(pa.array(places[done:end] - self._start))
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

    def _move_to(self, place: int) -> None:
        if place < self._start:
            self._rewind()
        while place >= self._stop:
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
            told = ", ".join(f"{kind} in {file.name}" for kind, file in kinds.items())
            raise CorpusError(f"{self._name}: column {column!r} is {told}; make it one type")
        return next(iter(kinds))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as cause:
            reason = str(cause).partition("\n")[0]
            raise CorpusError(f"{self._name}: cannot be read: {reason}") from cause
