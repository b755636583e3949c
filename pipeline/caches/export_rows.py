"""Rows to export: those of a corpus, in its order, each with its key and features.

for part in rows.slices():                                # memory: one batch
    feature.read(rows.cache_rows[part])                   # columns of B rows
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import KEY_BYTES, KeyArray
from ...stages.corpus.corpus import Corpus
from ...stages.store.format.index import Rows
from .export_columns import FeatureColumns

BATCH_ROWS = 2048
BATCH_BYTES = 64 * 2**20
KEY_COLUMN = "key"


@dataclass(frozen=True, slots=True)
class ExportRows:
    """N rows. `teacher`: who answered; `columns`: name -> column of the corpus, its ids among them;
    `cache_rows`: where the features of each row lie; `features`: what is written of each."""

    teacher: str
    columns: dict[str, pa.Array]
    ids: pa.Array | None
    keys: KeyArray
    cache_rows: Rows
    features: Sequence[FeatureColumns]

    def __len__(self) -> int:
        return len(self.cache_rows)

    def ends(self) -> npt.NDArray[np.int64]:
        """About how many bytes all rows take, up to each one and with it [N]."""
        columns = sum(column.nbytes for column in self.columns.values())
        sizes = np.full(len(self), columns // max(len(self), 1) + KEY_BYTES, dtype=np.int64)
        for feature in self.features:
            sizes += feature.row_bytes(self.cache_rows)
        return np.cumsum(sizes)

    def slices(self) -> Iterator[slice]:
        """All rows in order, so many at once as fit into memory."""
        ends, start = self.ends(), 0
        while start < len(self):
            full = (ends[start - 1] if start else 0) + BATCH_BYTES
            fitting = int(np.searchsorted(ends, full, side="right"))
            stop = min(max(fitting, start + 1), start + BATCH_ROWS, len(self))
            yield slice(start, stop)
            start = stop


def corpus_columns(
    corpus: Corpus, text: Sequence[str], label: str | None, ids: str | None, features: Sequence[str]
) -> dict[str, pa.Array]:
    """The columns of a corpus under their own names; refuses names that something else has."""
    columns = dict(zip(text, corpus.segments, strict=True))
    if corpus.labels is not None and label is not None:
        columns[label] = corpus.labels
    if corpus.ids is not None:
        columns[ids or "id"] = corpus.ids
    for name in (KEY_COLUMN, *features):
        if name in columns:
            what = "the key" if name == KEY_COLUMN else "a feature"
            raise JobError(f"column {name!r}: {what} has this name; rename it in the corpus")
    return columns
