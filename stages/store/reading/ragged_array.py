"""A feature along an axis, read from its shards: any examples' rows, end to end.

The values of all examples are one feature array whose rows are places; offsets say which are whose,
8 bytes an example. A batch costs one gather of its places.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.features import FeatureSpec
from ..format.rows import Ragged, Rows, places_of
from .feature_array import FeatureArray
from .joined_array import require_stored


class RaggedArray:
    """Read-only rows of N examples; safe to pickle, to use from several threads, after a fork."""

    def __init__(
        self,
        values: FeatureArray,
        lengths: npt.NDArray[np.int64],
        rows: Rows | None = None,
        remedy: str = "",
    ) -> None:
        """`values` [S, *shape] of examples with `lengths`. `rows`: example i is their i-th, -1 for
        one that is not there, and `remedy` says what to do about such."""
        self._values, self._rows, self._remedy = values, rows, remedy
        self._lengths = lengths
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    @property
    def spec(self) -> FeatureSpec:
        """Shape and type of the numbers at one place."""
        return self._values.spec

    @property
    def values(self) -> FeatureArray:
        """The values at all places [S, *shape], in the order of the files."""
        return self._values

    def __repr__(self) -> str:
        return f"<RaggedArray {self.spec.name}: {self.spec.shown} of {len(self)} examples>"

    def __len__(self) -> int:
        return len(self._lengths if self._rows is None else self._rows)

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        """The values of one example, [n, *shape]."""
        return self.gather(np.array([row], dtype=np.int64)).values

    def lengths(self, rows: Rows) -> npt.NDArray[np.int64]:
        """How many places examples [B] have. Raises IndexError and MissingKeysError."""
        return self._lengths[self._stored(rows)]

    def gather(self, rows: Rows) -> Ragged:
        """The values of examples [B], one after another. Raises IndexError for a row outside 0 to
        len - 1, MissingKeysError for one whose text the feature was not asked for."""
        stored = self._stored(rows)
        return Ragged(self._values.gather(places_of(stored, self._offsets)), self._lengths[stored])

    def gather_at(self, rows: Rows, places: Rows, counts: Rows) -> npt.NDArray[Any]:
        """Chosen values of examples [B]: `counts` says how many of each, `places` which of its own,
        one example after another."""
        stored = self._stored(rows)
        assert (places < np.repeat(self._lengths[stored], counts)).all(), "places of the example"
        return self._values.gather(np.repeat(self._offsets[stored], counts) + places)

    def will_need(self, rows: Rows) -> None:
        """Begin to read what is gathered soon; raises what `gather` does."""
        self._values.will_need(places_of(self._stored(rows), self._offsets))

    def require_whole(self, rows: Rows) -> None:
        """Raise DamagedCacheError if a file of some examples was cut after it was mapped."""
        stored = self._stored(rows)
        self._values.require_whole(self._offsets[stored][self._lengths[stored] > 0])

    def in_file_order(self, rows: Rows) -> Rows:
        """Numbers that grow along the files, for the same examples."""
        return rows if self._rows is None else self._rows[rows]

    def _stored(self, rows: Rows) -> Rows:
        rows = rows.astype(np.int64, casting="same_kind", copy=False)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        if self._rows is None:
            return rows
        return require_stored(self.spec.name, self._rows[rows], self._remedy)
