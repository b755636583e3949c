"""A feature that was added to a teacher later: rows counted as the teacher's, stored elsewhere.

The teacher that holds the feature was asked in an order of its own, and maybe about fewer texts. A
map from rows to rows, made once from the keys of both, joins the two; 8 bytes a row.
"""

import numpy as np

from ....cache_schemas.errors import MissingKeysError
from ..format.rows import Rows
from ..format.zarr_shards import DenseArray
from .feature_array import FeatureArray


class JoinedArray(FeatureArray):
    """A feature array whose row i is row `rows[i]` of another; -1 where the other has none."""

    def __init__(self, stored: FeatureArray, rows: Rows, remedy: str) -> None:
        """`remedy`: what to do about rows that are not there."""
        self.spec = stored.spec
        self._stored, self._rows, self._remedy = stored, rows, remedy
        self._length = len(rows)
        self._access = stored.access

    @property
    def mapped(self) -> None:
        """The rows lie in another order than they are counted in."""
        return None

    def gather(self, rows: Rows, out: DenseArray | None = None) -> DenseArray:
        """Rows [B] as an array [B, *shape], into `out` if given; see FeatureArray.

        Raises MissingKeysError, too, for rows of texts that the feature was not asked for."""
        return self._stored.gather(self._joined(rows), out)

    def will_need(self, rows: Rows) -> None:
        """Begin to read rows that are gathered soon; raises what `gather` does."""
        self._stored.will_need(self._joined(rows))

    def require_whole(self, rows: Rows) -> None:
        """As of the array that holds them."""
        self._stored.require_whole(self._joined(rows))

    def in_file_order(self, rows: Rows) -> Rows:
        """Numbers that grow along the files, for the same rows."""
        return self._rows[self._checked(rows)]

    def _joined(self, rows: Rows) -> Rows:
        return require_stored(self.spec.name, self.in_file_order(rows), self._remedy)


def require_stored(feature: str, rows: Rows, remedy: str) -> Rows:
    """The same rows, if each of them is there; raises MissingKeysError if some are -1."""
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise MissingKeysError(
            f"feature {feature!r}: {len(missing)} of {len(rows)} rows do not have it yet; {remedy}",
            missing.tolist(),
        )
    return rows
