"""Which examples share a batch: those of one bucket, as many as fit.

The longest come first, so that memory runs out early or never. How many fit is a number of padded
tokens, or of rows where a job says so. Where the device refuses, that bucket's limit is halved, and
doubled again after batches that fit: memory that somebody else held for a while, or one freak of a
text, does not slow down the days after it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from ...cache_schemas.errors import RunError
from ...cache_schemas.keys import IntArray
from ...cache_schemas.manifest import BatchFigures
from .teachers.base import ROW_GROUP, Prepared, Teacher

PATIENCE, MOST_PATIENCE = 16, 4096
"""Batches that fit before a limit is doubled again; four times as many after each refusal."""


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
    """The batches of a run so far, counted on: the fields of `BatchFigures`.

    seconds: wall time of `precompute`; busy_seconds: the part in which the device was at work on a
    batch. On a CPU that is from the start of a batch until `Teacher.start` returns; on a CUDA
    device between the same two moments of its own queue, by its own clock. Elsewhere it is not
    measured, and 0."""

    batches: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    refused: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0

    def add(self, more: "BatchCounts") -> None:
        """Count another device's, or another chunk's, with these."""
        for name, value in asdict(more).items():
            setattr(self, name, getattr(self, name) + value)

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
    teacher knows no lengths."""

    default_rows: int
    tokens: int | None = None
    rows: int | None = None
    _limits: dict[int, _Limit] = field(default_factory=dict)

    @classmethod
    def of(cls, teacher: Teacher, rows: int | None) -> "BatchSizes":
        """The sizes of a teacher's batches, `rows` being those that a job asks for."""
        return cls(teacher.default_batch_size, teacher.default_batch_tokens, rows)

    def limit(self, bucket: int) -> _Limit:
        """The limit of a bucket."""
        if bucket not in self._limits:
            most = self._most(bucket)
            self._limits[bucket] = _Limit(most, most)
        return self._limits[bucket]

    def _most(self, bucket: int) -> int:
        if self.rows is not None:
            return self.rows
        if self.tokens is None or not bucket:
            return self.default_rows
        rows = max(self.tokens // bucket, 1)
        return rows - rows % ROW_GROUP if rows > ROW_GROUP else rows

    def batches_of(self, prepared: Prepared, counts: BatchCounts) -> Iterator[IntArray]:
        """Indices [B] of the examples of each batch.

        Whoever takes a batch counts it in `counts.refused` if it did not fit: it comes again in
        smaller ones."""
        for bucket in np.unique(prepared.buckets)[::-1].tolist():
            waiting = np.flatnonzero(prepared.buckets == bucket)
            limit = self.limit(bucket)
            while len(waiting):
                batch = waiting[: limit.rows]
                before = counts.refused
                yield batch
                if counts.refused != before:
                    limit.refuse(len(batch))
                    continue
                limit.fit()
                counts.batches += 1
                counts.rows += len(batch)
                if prepared.lengths is not None:
                    counts.tokens += int(prepared.lengths[batch].sum())
                    counts.padded_tokens += len(batch) * bucket
                waiting = waiting[len(batch) :]
