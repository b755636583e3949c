"""Whose work merged rows are: the sources' runs, kept under their own ids in the destination.

A run says what each shard it wrote cost. A shard of the destination is filled from other shards, so
each of its rows brings its share, the seconds of its old shard divided by that shard's rows, and
the shares are added up under the run's id and the new shard's number. So in any cache the sum of
`teacher_seconds` over all runs is what the answers that are there cost: once, however often and
from however many copies a row could have come. What was paid for answers that were not taken stays
behind. Likewise `truncated_examples` counts rows that were taken.

A merge that is killed between a commit and its run records (a moment) loses that shard's share.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ....cache_schemas.manifest import RunRecord
from ..writing.writer import CacheWriter
from .merge_source import SourceShard

CutRows = tuple[SourceShard, npt.NDArray[np.bool_]]
"""Rows taken from one shard: for each, whether its text was truncated."""


class CarriedRuns:
    """Brings the runs of sources along, after each commit."""

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer

    def carry(self, shard: int, taken: Sequence[CutRows]) -> float:
        """Account for a new shard that was made of the rows taken.

        Returns the seconds that came with it."""
        seconds: dict[str, float] = {}
        truncated: dict[str, int] = {}
        records: dict[str, RunRecord] = {}
        for source, cut in taken:
            for name, record, each in source.costs():
                records[name] = record
                seconds[name] = seconds.get(name, 0.0) + each * len(cut)
                truncated[name] = truncated.get(name, 0) + int(cut.sum())
        for name, record in records.items():
            self._add(name, record, shard, seconds[name], truncated[name])
        return sum(seconds.values())

    def _add(self, name: str, source: RunRecord, shard: int, seconds: float, cut: int) -> None:
        def added(here: RunRecord | None) -> RunRecord:
            known = here.teacher_seconds if here else {}
            changed = {
                "teacher_seconds": known | {shard: round(seconds, 6)},
                "truncated_examples": (here.truncated_examples if here else 0) + cut,
            }
            return (here or source).model_copy(update=changed)

        self._writer.update_run(name, added)
