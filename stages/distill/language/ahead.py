"""The next batch of a language model is made while the student is at the one before it.

To decode a teacher's answers takes a microsecond or two a token: 10 to 20 ms for a batch of 8,192,
which a student on a GPU need not wait for. NumPy frees the interpreter meanwhile.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batches import Batch, DistillDataset
from ..order import Places
from .batches import PackedTexts


@dataclass(frozen=True, slots=True)
class _Coming:
    """A batch in the making."""

    places: Places
    batch: Future[Batch]


class AheadDataset(DistillDataset):
    """Makes the batch that is expected next in a thread. Batches are what they are without it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")
        self._expected: Places | None = None
        self._coming: _Coming | None = None

    @property
    def reads_cache(self) -> bool:
        """Whether something of a cache is in its batches; a teacher's tokens are."""
        rows = self.tokens
        return super().reads_cache or (isinstance(rows, PackedTexts) and bool(rows.teachers))

    def expect(self, places: Places | None) -> None:
        """Begun once the batch before it is asked for: those that are passed over cost nothing."""
        self._expected = places

    def _batch(self, whole: Places) -> Batch:
        coming, self._coming = self._coming, None
        if coming is not None and np.array_equal(coming.places, whole):
            batch = coming.batch.result()
        else:
            batch = super()._batch(whole)
        if self._expected is not None:
            made = self._pool.submit(super()._batch, self._expected)
            self._coming = _Coming(self._expected, made)
        return batch
