"""The writing half of an import: features by place -> shards of a cache, checked on the way."""

from collections.abc import Callable

import numpy as np

from ...cache_schemas.errors import CorpusError, ReservationLostError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import first_occurrences
from ...cache_schemas.manifest import CorpusRecord, RunRecord
from ...stages.corpus.corpus import Corpus, corpus_name
from ...stages.store.format.dense import DenseArray
from ...stages.store.format.index import Rows
from ...stages.store.writing.reservations import Reservation
from ...stages.store.writing.work import Work
from ...stages.store.writing.writer import CacheWriter
from ..provenance import library_versions, new_run_id, now
from .import_source import FeatureSource

SHOWN_PROBLEMS = 5
LIBRARIES = ("python", "armada-kd", "numpy", "pyarrow")


class ImportedShards:
    """Rows of a corpus go into a cache in the order of their features' places; of several rows with
    one text, the first."""

    def __init__(
        self,
        corpus: Corpus,
        source: FeatureSource,
        places: Rows,
        writer: CacheWriter,
        skip_bad_rows: bool,
        waiting: Callable[[int], None],
    ) -> None:
        """`places`: of each row of the corpus; `waiting`: see `Work`."""
        self._corpus, self._source, self._writer = corpus, source, writer
        self._rows = np.argsort(places, kind="stable")
        self._places, self._keys = places[self._rows], corpus.keys()[self._rows]
        self._work = Work(writer, self._keys, waiting)
        self._skip = skip_bad_rows
        self._run_id, self._run = new_run_id(), _run_record(corpus)
        self.pending = self._work.pending
        self.unique = len(first_occurrences(self._keys))
        self.imported = 0
        self.skipped: list[str] = []

    def write(self, advance: Callable[[int], None]) -> None:
        """Import what is pending; raises CorpusError for features that cannot be kept, unless bad
        rows are skipped."""
        while (task := self._work.reserve()) is not None:
            values, good = self._take(task.rows)
            try:
                self._commit(task.rows[good], values[good], task.reservation)
            except ReservationLostError:
                self._work.put_back(task)
            else:
                advance(len(task.rows))

    def _take(self, positions: Rows) -> tuple[DenseArray, Rows]:
        """Features in the stored type, and which of them are good."""
        found, problems = self._source.take(self._places[positions])
        with np.errstate(over="ignore"):
            values = found.astype(self._feature.dtype, copy=False)
        finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        for position in np.flatnonzero(~finite).tolist():
            problems.setdefault(position, f"is not finite in {self._feature.dtype}")
        self._refuse_or_skip(
            [
                f"{self._corpus.where(int(self._rows[positions[at]]))}: {problems[at]}"
                for at in sorted(problems)
            ]
        )
        return values, np.setdiff1d(np.arange(len(positions)), np.fromiter(problems, np.int64))

    @property
    def _feature(self) -> FeatureSpec:
        return self._writer.manifest.spec.features[0]

    def _refuse_or_skip(self, problems: list[str]) -> None:
        if problems and not self._skip:
            raise CorpusError(
                f"{len(problems)} rows have features that cannot be kept; what was imported so far "
                "stays; leave such rows out with skip_bad_rows=true. First: "
                f"{'; '.join(problems[:SHOWN_PROBLEMS])}"
            )
        self.skipped += problems

    def _commit(self, positions: Rows, values: DenseArray, reservation: Reservation) -> None:
        if not len(positions):
            self._writer.release(reservation)
            return
        record = self._writer.commit(
            self._keys[positions],
            {self._feature.name: values},
            np.zeros(len(positions), dtype=bool),
            reservation=reservation,
        )
        self.imported += record.rows
        seconds = self._run.teacher_seconds | {record.shard: 0.0}
        self._run = self._run.model_copy(update={"teacher_seconds": seconds})
        self._writer.record_run(self._run_id, self._run)


def _run_record(corpus: Corpus) -> RunRecord:
    """What is known: not on what hardware, nor with which libraries the features were made."""
    keys = corpus.keys()
    rows_of = [np.flatnonzero(corpus.source_of_row == at) for at in range(len(corpus.sources))]
    return RunRecord(
        started=now(),
        versions={name: library_versions()[name] for name in LIBRARIES},
        hardware={},
        corpora=tuple(
            CorpusRecord(
                name=corpus_name(source),
                rows=len(rows),
                unique_examples=len(first_occurrences(keys[rows])),
            )
            for source, rows in zip(corpus.sources, rows_of, strict=True)
        ),
    )
