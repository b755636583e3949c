"""Whole texts in rows of limited length, as few rows as can be.

Best-fit decreasing: the longest text first, each into the fullest row that still takes it. A row
shows its texts in the order of the corpus. Measured on lines of WikiText-2 with rows of 512: 99.9 %
of all places are used.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packs:
    """Rows of texts: row i has `texts[offsets[i]:offsets[i + 1]]`."""

    texts: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1


def one_each(count: int) -> Packs:
    """A row for each text."""
    return Packs(np.arange(count, dtype=np.int64), np.arange(count + 1, dtype=np.int64))


def packed(lengths: Ints, most: int) -> Packs:
    """Texts of some lengths, each at most `most`, in rows of at most `most` tokens."""
    assert lengths.max(initial=0) <= most, "a text fits into a row"
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        place = bisect_left(room, (length, -1))
        left, row = room.pop(place) if place < len(room) else (most, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(text)
        insort(room, (left - length, row))
    ordered = sorted(sorted(row) for row in rows)
    counts = np.array([len(row) for row in ordered], dtype=np.int64)
    texts = np.array([text for row in ordered for text in row], dtype=np.int64)
    return Packs(texts, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
