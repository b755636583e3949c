"""Random order for features that do not fit into memory: rows that lie together are read together,
the next ones while the last are in use.

Rows are cut into blocks of neighbours; an epoch takes the blocks in random order, a few at a time,
and mixes the rows of such a window. So a feature is read at the disk's own speed, once an epoch,
and no more of it than two windows has to be in memory (whole random rows: twice the bytes, at a
tenth of the rate). The price: examples that were computed together meet in a batch more often than
by chance.

The window after the one in use is read by one thread in the background. One thread and mapped
memory: worker processes would copy each batch once more (0.3 against 3.6 million rows/s). Planning
and starting are two steps, because a run that resumes goes through the order of the batches it
skips, and nothing should be read for those.
"""

import threading
from collections.abc import Callable, Iterator

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
        self._rows: Rows = np.argsort(rows, kind="stable").astype(np.int64)
        self._block_rows, self._blocks_per_window = block_rows, blocks_per_window

    def windows(self, seed: int, epoch: int, stream: int = 0) -> Iterator[Rows]:
        """The windows of an epoch: positions in `rows`, each one exactly once an epoch.

        A function of (seed, epoch, stream) alone; `stream` distinguishes passes over one epoch."""
        random = np.random.default_rng([seed, epoch, stream])
        blocks = random.permutation(-(-len(self._rows) // self._block_rows))
        for first in range(0, len(blocks), self._blocks_per_window):
            window = blocks[first : first + self._blocks_per_window]
            yield random.permutation(np.concatenate([self._block(block) for block in window]))

    def _block(self, block: int) -> Rows:
        return self._rows[block * self._block_rows : (block + 1) * self._block_rows]


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


class ReadAhead:
    """Announces windows of rows, each once, one ahead of its use."""

    def __init__(self, will_need: Callable[[Rows], None]) -> None:
        """`will_need` begins to read rows, like `FeatureArray.will_need`."""
        self._will_need = will_need
        self._planned: list[Rows] = []
        self._last: Rows | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def planned(self, windows: Iterator[Rows]) -> Iterator[Rows]:
        """The same windows; each is planned, with the next one, as it is handed out."""
        window = next(windows, None)
        while window is not None:
            following = next(windows, None)
            self._planned = [window] if following is None else [window, following]
            yield window
            window = following

    def start(self) -> None:
        """Before rows of the current window are used: begin to read what was planned and is not
        being read. Raises what reading the window before ran into."""
        windows = [window for window in self._planned if window is not self._last]
        if not windows:
            return
        self._planned, self._last = [], windows[-1]
        self.wait()
        # A daemon, so that a download in progress does not keep a process from stopping.
        self._thread = threading.Thread(target=self._announce, args=(windows,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until all that was started is being read."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _announce(self, windows: list[Rows]) -> None:
        try:
            for window in windows:
                self._will_need(window)
        except Exception as error:
            self._error = error
