"""Cached features along the tokens of a text, for batches of a student with the same tokens.

Row t of a text is for its token t. In a batch they are as the student's hidden states:
[B, T, *shape], 0 where there is padding. Shapes: B texts, T tokens of the longest, S tokens of all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..ragged import positions_of
from ..store.format.rows import Rows
from ..store.reading.feature_array import RaggedArray
from .controls import among_others

_BLOCK = 4096
"""Texts whose tokens are compared at once."""


@dataclass(frozen=True, slots=True)
class TokenGather:
    """Maps indices into the training set [B] to their features [B, T, *shape], T being the tokens
    of the longest text. `rows` are the cache rows of all examples, -1 of those that are not in the
    cache; `left`: padding comes first."""

    feature: RaggedArray
    rows: Rows
    left: bool = False

    def __call__(self, indices: Rows) -> npt.NDArray[Any]:
        rows = self.rows[indices]
        answered = rows[rows >= 0]
        self.feature.require_whole(answered)
        found = self.feature.gather(answered)
        lengths_B = np.zeros(len(rows), np.int64)
        lengths_B[rows >= 0] = found.lengths
        width = int(lengths_B.max(initial=1))
        at_T, lengths_B1 = np.arange(width), lengths_B[:, None]
        mask_BT = at_T >= width - lengths_B1 if self.left else at_T < lengths_B1
        padded = np.zeros((*mask_BT.shape, *found.values.shape[1:]), found.values.dtype)
        padded[mask_BT] = found.values
        return padded

    def has(self, indices: Rows) -> npt.NDArray[np.bool_]:
        """Which examples [B] have a feature."""
        return self.rows[indices] >= 0

    @property
    def bytes(self) -> int:
        """Bytes of the features of all examples."""
        lengths = self.feature.lengths(self.rows[self.rows >= 0])
        return int(lengths.sum()) * self.feature.spec.row_bytes

    def will_need(self, indices: Rows) -> None:
        """Start reading features that are gathered soon."""
        rows = self.rows[indices]
        self.feature.will_need(rows[rows >= 0])

    def file_order(self) -> Rows:
        """A sort key for each example [N]: contiguous features have close keys."""
        return self.feature.in_file_order(among_others(self.rows))


def other_tokens(
    token_ids: RaggedArray, rows: Rows, ids_S: npt.NDArray[Any], offsets: Rows
) -> Rows:
    """The examples [N] whose cached tokens are not `ids_S[offsets[i]:offsets[i + 1]]`, of those
    that are in the cache."""
    lengths, found = np.diff(offsets), []
    for start in range(0, len(rows), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(rows)))
        block = block[rows[block] >= 0]
        theirs = token_ids.lengths(rows[block])
        same = block[theirs == lengths[block]]
        found.append(block[theirs != lengths[block]])
        ours = ids_S[positions_of(same, offsets)]
        wrong = token_ids.gather(rows[same]).values != ours
        found.append(np.unique(np.repeat(same, lengths[same])[wrong]))
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))
