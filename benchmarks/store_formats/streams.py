"""Readers that hand out one row after another: rows are stacked to batches here."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from .reader import BATCH_ROWS, Batch


def in_batches(rows: Iterable[Any], stack: Callable[[list[Any]], Batch]) -> Iterator[Batch]:
    """Rows [D], one by one, to batches [B, D]."""
    # A generator stays at its end; litdata's iterator would begin anew.
    once = (row for row in rows)
    while batch := list(islice(once, BATCH_ROWS)):
        yield stack(batch)
