"""Rows to export: those of a corpus, in its order, each with its key and features.

for part in rows.slices():                                # memory: one batch
    feature.gather(rows.cache_rows[part])                 # [B, *shape]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import KEY_BYTES, KeyArray
from ...stages.corpus.corpus import Corpus
from ...stages.store.format.index import Rows
from ...stages.store.reading.feature_array import FeatureArray

BATCH_ROWS = 2048
BATCH_BYTES = 64 * 2**20
KEY_COLUMN = "key"


@dataclass(frozen=True, slots=True)
class ExportRows:
    """N rows. `teacher`: who answered; `columns`: name -> column of the corpus, its ids among them;
    `cache_rows`: where the features of each row lie; `features`: name -> feature."""

    teacher: str
    columns: dict[str, pa.Array]
    ids: pa.Array | None
    keys: KeyArray
    cache_rows: Rows
    features: dict[str, FeatureArray]

    def __len__(self) -> int:
        return len(self.cache_rows)

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row takes."""
        columns = sum(column.nbytes for column in self.columns.values())
        features = sum(feature.spec.row_bytes for feature in self.features.values())
        return int(columns) // max(len(self), 1) + KEY_BYTES + features

    def slices(self) -> Iterator[slice]:
        """All rows in order, so many at once as fit into memory."""
        size = min(BATCH_ROWS, max(BATCH_BYTES // self.row_bytes, 1))
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


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
