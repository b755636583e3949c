"""Features that were computed elsewhere, in the layouts that people keep them in.

A source is joined to a corpus by the ids of both or by the order of rows. Nothing is unpickled;
what a file says of its own size is checked before memory is taken for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...cache_schemas.errors import CorpusError, JobError
from ...stages.corpus.corpus import Corpus
from ...stages.store.format.dense import DenseArray
from ...stages.store.format.index import Rows


class FeatureSource(ABC):
    """Places 0 to `count` - 1, each with the features of one example.

    `layout`: what the teacher's settings say of it; `shape` and `dtype`: of one example;
    `place_of_row`: for each row of the corpus, -1 for one that has no features here."""

    layout: ClassVar[str]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    count: int
    place_of_row: Rows

    @abstractmethod
    def take(self, places: Rows) -> tuple[DenseArray, dict[int, str]]:
        """The features at ascending places [B] as [B, *shape], and what is wrong with some of them:
        position -> problem; the numbers there mean nothing."""


def require_ids(corpus: Corpus) -> pa.Array:
    """The ids of a corpus, one for every row; raises JobError or CorpusError."""
    if corpus.ids is None:
        raise JobError(
            "job key 'id_column' is missing (column of unique ids); features are found by it"
        )
    if corpus.ids.null_count:
        row = int(np.flatnonzero(corpus.ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise CorpusError(f"{corpus.where(row)}: has no id to find its features by")
    return corpus.ids


def find_ids(corpus: Corpus, known: pa.Array, where: object) -> Rows:
    """The place of each row's id among `known` ones [count]; -1 where it is not among them.

    Raises CorpusError for an id that is there twice."""
    wanted = require_ids(corpus)
    if pc.count_distinct(known, mode="all").as_py() != len(known):
        counts = pc.value_counts(known)
        twice = next(entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1)
        raise CorpusError(f"{where}: id {twice!r} comes twice; an id has one array")
    found = pc.index_in(wanted, value_set=known).fill_null(-1)
    rows: Rows = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def in_row_order(corpus: Corpus, count: int, where: object) -> Rows:
    """Place i is row i of the corpus's file, or files one after another; raises CorpusError if
    there is not one place for each row."""
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


def check_dtype(dtype: np.dtype[Any], where: object, stored: str | None) -> None:
    """Refuse what is not float16 or float32, or float64 to be stored as one of these."""
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise CorpusError(f"{where}: holds {dtype}; features are float16, float32 or float64")
    if dtype.itemsize == 8 and stored is None:
        raise CorpusError(
            f"{where}: holds float64, which a cache does not keep; say store_dtype=float32 or "
            "store_dtype=float16"
        )


def described(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """For messages."""
    return f"{dtype}{list(shape)}"
