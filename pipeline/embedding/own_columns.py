"""Teachers that have read other columns than the student embeds: the picture of a row, a hint.

The vector of a row is the target of each text of it. A corpus is read with the columns of all, and
of a teacher's own the key of each row is kept: pictures are not held while a student trains.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import KEY_BYTES, IntArray, KeyArray
from ...stages.corpus.corpus import Corpus
from ...stages.corpus.labels import LabelValues
from ...stages.distill.embedding.groups import Places
from ..distill_job import DistillJob
from ..labelled_corpus import LabelledCorpus
from ..sources import Columns
from ..terms import Reading, Term

OwnColumns = Mapping[str, tuple[str, ...]]
"""The text columns of a source whose teacher has some of its own."""


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """The keys [N, 16] of what teachers have read of N rows, by source; of rows without, why."""

    keys: Mapping[str, KeyArray] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def take(self, rows: IntArray) -> "OwnKeys":
        """Only those of the given rows."""
        return replace(self, keys={name: keys[rows] for name, keys in self.keys.items()})

    def digests(self, labels: LabelValues) -> dict[str, str]:
        """Digests of what was read, with the labels beside it."""
        found = {}
        for name, keys in self.keys.items():
            digest = hashlib.blake2b(keys.tobytes(), digest_size=16)
            digest.update(labels.tobytes())
            found[name] = digest.hexdigest()
        return found


def own_columns(job: DistillJob, readings: Mapping[str, Reading]) -> OwnColumns:
    """The sources whose teachers have text columns of their own: others than the only one that the
    student embeds."""
    found = {}
    for name, reading in readings.items():
        columns = job.all_teachers[reading.teacher].text_column
        if columns and (columns != job.text_column or len(columns) > 1):
            found[name] = columns
    return found


def check_own_columns(own: OwnColumns, terms: Sequence[Term]) -> None:
    """Raises JobError for objectives that compare the texts of a row by a teacher that has one
    vector for all of them."""
    for term in terms:
        for reading in term.readings:
            if reading.source in own and "candidates" in term.objective.reads.student:
                raise JobError(
                    f"objective {term.keys.name}: compares the texts of a row, and teacher "
                    f"{reading.teacher} has one vector for all of them "
                    f"({', '.join(own[reading.source])}); use infonce, feature or another "
                    "objective of vectors for it"
                )


@dataclass(frozen=True, slots=True)
class WholeRows:
    """Rows as they were read: the student's texts, and what each source with columns of its own
    reads; of rows that lack it, why."""

    student: LabelledCorpus
    read: Mapping[str, Corpus]
    reasons: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, whole: LabelledCorpus, columns: Columns, own: OwnColumns) -> "WholeRows":
        """Rows of a corpus with the columns of all."""
        read = {
            name: whole.corpus.of_columns(each)
            for name, each in zip(own, columns.sources, strict=True)
        }
        return cls(whole.of_columns(columns.student), read)

    def keys(self) -> OwnKeys:
        """The keys of what sources read."""
        return OwnKeys({name: corpus.keys() for name, corpus in self.read.items()}, self.reasons)


def targets_of_rows(keys_N: KeyArray, places: Places) -> tuple[IntArray, Places]:
    """The first row [R] of each different key, and which of them is the target of each text of a
    row [N, C], -1 where that is absent."""
    _, first, numbers = np.unique(
        np.ascontiguousarray(keys_N).view(f"V{KEY_BYTES}")[:, 0],
        return_index=True,
        return_inverse=True,
    )
    own = np.where(places >= 0, numbers.reshape(-1, 1), -1)
    return first.astype(np.int64), own.astype(np.int64)
