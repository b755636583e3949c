"""Block shuffling: a random order in which rows that lie together are read together.

Rows are cut into blocks of neighbours; an epoch takes the blocks in random order, a few at a time,
and mixes the rows of such a window. So a feature that does not fit into memory is read at the
disk's own speed, once an epoch, and no more of it than two windows has to be in memory (whole
random rows: twice the bytes, at a tenth of the rate). The price: examples that were asked about
together meet in a batch more often than by chance.
"""

from collections.abc import Iterator

import numpy as np

from ..format.rows import Rows

BLOCK_ROWS = 2048
"""4 MiB of 1024 float16 numbers: read as fast as a whole file."""
BLOCKS_PER_WINDOW = 4


class BlockOrder:
    """Orders of N examples of which the i-th lies in row `rows[i]` of a feature."""

    def __init__(
        self,
        rows: Rows,
        block_rows: int = BLOCK_ROWS,
        blocks_per_window: int = BLOCKS_PER_WINDOW,
    ) -> None:
        self._places: Rows = np.argsort(rows, kind="stable").astype(np.int64)
        self._block_rows, self._blocks_per_window = block_rows, blocks_per_window

    def windows(self, seed: int, epoch: int, stream: int = 0) -> Iterator[Rows]:
        """The windows of an epoch: positions in `rows`, each one exactly once an epoch.

        A function of (seed, epoch, stream) alone; `stream` tells passes over one epoch apart."""
        random = np.random.default_rng([seed, epoch, stream])
        blocks = random.permutation(-(-len(self._places) // self._block_rows))
        for first in range(0, len(blocks), self._blocks_per_window):
            window = blocks[first : first + self._blocks_per_window]
            yield random.permutation(np.concatenate([self._block(block) for block in window]))

    def _block(self, block: int) -> Rows:
        return self._places[block * self._block_rows : (block + 1) * self._block_rows]


def batches_of(windows: Iterator[Rows], batch_size: int) -> Iterator[Rows]:
    """Windows one after another, cut into batches; only the last one may be smaller."""
    rest = np.empty(0, dtype=np.int64)
    for window in windows:
        rows = np.concatenate([rest, window])
        whole = len(rows) // batch_size * batch_size
        yield from rows[:whole].reshape(-1, batch_size)
        rest = rows[whole:]
    if len(rest):
        yield rest
