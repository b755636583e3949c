"""Which examples share a batch: those of one bucket, as many as fit.

The longest come first, so that memory runs out early or never. How many fit is a number of padded
tokens, or of rows where a job says so. Where the device refuses, that bucket's limit is halved, and
doubled again after batches that fit: memory that somebody else held for a while, or one freak of a
text, does not slow down the days after it.

With `batch_size=auto` the number is found on the device, in the first batches of a run: it is
doubled as long as that computes noticeably more examples a second, and fits. What is tried is what
is to be computed anyway.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from ...cache_schemas.errors import RunError
from ...cache_schemas.keys import IntArray
from ...cache_schemas.manifest import BatchFigures
from .teachers.base import ROW_GROUP, Prepared, Teacher

PATIENCE, MOST_PATIENCE = 16, 4096
"""Batches that fit before a limit is doubled again; four times as many after each refusal."""

AUTO = "auto"
MEASURED = 2
"""Batches of each size that are timed; the fastest counts, for the first of a shape may be slow."""
RISE = 1.05
"""By how much more examples a second larger batches have to compute."""

_LOGGER = logging.getLogger("armada")


@dataclass(slots=True)
class _Limit:
    """The rows of one bucket's batches."""

    most: int
    rows: int
    patience: int = PATIENCE
    fitted: int = 0

    def fit(self) -> None:
        self.fitted += 1
        if self.rows < self.most and self.fitted >= self.patience:
            self.rows, self.fitted = min(2 * self.rows, self.most), 0

    def refuse(self, rows: int) -> None:
        if rows == 1:
            raise RunError(
                "device memory: a single example does not fit; use a device with more memory, a "
                "smaller dtype, or a smaller input size of the teacher"
            )
        self.rows, self.fitted = rows // 2, 0
        self.patience = min(4 * self.patience, MOST_PATIENCE)


@dataclass(slots=True)
class BatchCounts:
    """The batches of a run so far, on one device, counted on: the fields of `BatchFigures`.

    seconds: wall time of `precompute`, or of a worker since it began the run; busy_seconds: the
    part in which the device was running a batch. On a CPU that is from the start of a batch until
    `Teacher.start` returns; on a CUDA device between the same two moments of its own queue, by its
    own clock. Elsewhere it is not measured, and 0."""

    batches: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    refused: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    auto_limit: int = 0

    def figures(self) -> BatchFigures:
        """As they are now."""
        return BatchFigures(
            **asdict(self)
            | {"seconds": round(self.seconds, 6), "busy_seconds": round(self.busy_seconds, 6)}
        )


@dataclass(slots=True)
class BatchSizes:
    """How large batches are, of one teacher on one device, for as long as it runs.

    rows: as a job says; else as many as have `tokens` padded tokens, or `default_rows` where a
    teacher knows no lengths. auto: whether to look for a better number than those two."""

    default_rows: int
    tokens: int | None = None
    rows: int | None = None
    auto: bool = False
    _settled: bool = False
    _limits: dict[int, _Limit] = field(default_factory=dict)
    _rates: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """Bucket and rows of a batch -> examples a second."""

    @classmethod
    def of(cls, teacher: Teacher, requested: int | Literal["auto"] | None) -> "BatchSizes":
        """The sizes of a teacher's batches, `requested` being the rows that a job asks for."""
        rows = requested if isinstance(requested, int) else None
        return cls(
            teacher.default_batch_size, teacher.default_batch_tokens, rows, requested == AUTO
        )

    @property
    def budget(self) -> int:
        """Padded tokens of a batch, or rows."""
        return self.rows or self.tokens or self.default_rows

    def limit(self, bucket: int) -> _Limit:
        """The limit of a bucket."""
        most = self._most(bucket)
        limit = self._limits.setdefault(bucket, _Limit(most, most))
        if limit.most != most:  # larger ones were found to be better
            limit.rows = most if limit.rows == limit.most else limit.rows
            limit.most = most
        return limit

    def _most(self, bucket: int) -> int:
        if self.rows is not None:
            return self.rows
        if self.tokens is None or not bucket:
            return self.default_rows
        rows = max(self.tokens // bucket, 1)
        return rows - rows % ROW_GROUP if rows > ROW_GROUP else rows

    def _next(self, bucket: int, waiting: int) -> int:
        """Rows of the next batch of a bucket: the limit's, or twice as many to be timed."""
        limit = self.limit(bucket)
        twice = 2 * limit.rows
        tried = self._searches and limit.rows == limit.most and waiting >= twice
        return twice if tried and len(self._timed(bucket, limit.rows)) >= MEASURED else limit.rows

    @property
    def _searches(self) -> bool:
        return self.auto and not self._settled

    def _timed(self, bucket: int, rows: int) -> list[float]:
        return self._rates.setdefault((bucket, rows), [])

    def measured(self, bucket: int, rows: int, seconds: float) -> None:
        """A batch took the device so long; 0: not known."""
        if not self._searches:
            return
        if not seconds:
            self._settle("this device is not timed")
            return
        self._timed(bucket, rows).append(rows / seconds)
        most = self._most(bucket)
        now, twice = self._timed(bucket, most), self._timed(bucket, 2 * most)
        if min(len(now), len(twice)) < MEASURED:
            return
        if max(twice) < RISE * max(now):
            self._settle("larger ones are no faster")
        elif self.tokens is None:
            self.default_rows *= 2
        else:
            self.tokens *= 2

    def _settle(self, reason: str) -> None:
        self._settled = True
        unit = "rows" if self.tokens is None else "padded tokens"
        _LOGGER.info(f"batch_size=auto: {self.budget:,} {unit} a batch; {reason}")

    def batches_of(self, prepared: Prepared, counts: BatchCounts) -> Iterator[IntArray]:
        """Indices [B] of the examples of each batch.

        Whoever takes a batch counts it in `counts.refused` if it did not fit: it comes again in
        smaller ones."""
        for bucket in np.unique(prepared.buckets)[::-1].tolist():
            waiting = np.flatnonzero(prepared.buckets == bucket)
            while len(waiting):
                limit = self.limit(bucket)
                batch = waiting[: self._next(bucket, len(waiting))]
                before = counts.refused
                yield batch
                if counts.refused != before and len(batch) > limit.rows:
                    self._settle("larger ones do not fit into memory")
                    continue
                if counts.refused != before:
                    limit.refuse(len(batch))
                    continue
                limit.fit()
                counts.batches += 1
                counts.rows += len(batch)
                counts.auto_limit = self.budget if self.auto else 0
                if prepared.lengths is not None:
                    counts.tokens += int(prepared.lengths[batch].sum())
                    counts.padded_tokens += len(batch) * bucket
                waiting = waiting[len(batch) :]
