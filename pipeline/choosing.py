"""`select`: the training rows that a job's rules choose, before anything is tokenized.

Scores are read from caches of the job's teachers, a block of rows at a time, joined by the key of
the columns that each of them read. What is left out is counted by rule, and listed in the run's
folder: `left_out.parquet`. The rules are in `../stages/distill/choosing.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..cache_schemas.errors import JobError
from ..stages.choosing import balanced, in_random_order
from ..stages.corpus.labels import MISSING, LabelSpace
from ..stages.distill.choosing import (
    Scores,
    agrees,
    at_most_of_each,
    confidence,
    entropy,
    largest,
    log_probs_of_labels,
    log_ratio,
    within,
)
from ..stages.store.files.atomic import write_atomic
from ..stages.store.format.rows import Rows
from ..stages.store.reading.reader import Cache
from .answers import Answers, missing_keys, open_answers
from .choosing_keys import (
    AgreementRule,
    BalanceRule,
    BetweenRule,
    DifferenceRule,
    EntropyRule,
    LearnabilityRule,
    SelectRule,
)
from .distill_job import DistillJob
from .messages import LOGGER
from .student_data import LabelledCorpus

LEFT_OUT = "left_out.parquet"
_BLOCK_ROWS = 65536


@dataclass(frozen=True)
class Selection:
    """What the rules of a job left: rows before, rows kept, and a table of those left out with the
    columns row, key, rule and score; `rules` are figures of each."""

    of: int
    kept: int
    left_out: pa.Table
    rules: list[dict[str, Any]] = field(default_factory=list)
    read: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """Fingerprint of each teacher that was read, and the digest of its cache."""

    def figures(self) -> dict[str, Any]:
        """Counts, for the metrics of a run."""
        return {"of": self.of, "kept": self.kept, "rules": self.rules}

    def write(self, folder: Path) -> None:
        """List what was left out."""
        sink = pa.BufferOutputStream()
        pq.write_table(self.left_out, sink)
        write_atomic(folder / LEFT_OUT, [sink.getvalue().to_pybytes()])


def teachers_of(rules: Sequence[SelectRule]) -> tuple[str, ...]:
    """The teachers that rules read, each once."""
    return tuple(dict.fromkeys(name for rule in rules for name in rule.teachers))


def select(
    job: DistillJob,
    train: LabelledCorpus,
    space: LabelSpace,
    columns: Mapping[str, tuple[int, ...]],
) -> tuple[LabelledCorpus, Selection]:
    """The rows that all rules of a job leave. `columns`: indices of the text columns that each
    teacher read. Raises JobError for a rule that leaves nothing or fits neither labels nor
    features, MissingKeysError for rows without a score, unless bad rows are skipped."""
    reader = _Reader(job, train, columns)
    reader.skip_missing()
    before = len(reader.train.labels)
    listed, figures = [], []
    for number, rule in enumerate(job.select):
        what = f"select.{number} ({rule.name})"
        scores, chosen = _apply(rule, reader, space, what)
        count = len(reader.train.labels)
        if not len(chosen):
            finite = scores[np.isfinite(scores)]
            ends = f"; scores are {finite.min():.4g} to {finite.max():.4g}" if len(finite) else ""
            raise JobError(f"{what}: leaves none of {count} rows{ends}; loosen it")
        left = np.setdiff1d(np.arange(count), chosen)
        listed.append(_listed(reader.train, left, what, scores))
        figures.append({"rule": rule.name, "kept": len(chosen), "left_out": len(left)})
        LOGGER.info(f"{what}: {len(chosen):,} of {count:,} rows are kept")
        reader.train = reader.train.take(chosen)
    table = pa.concat_tables(listed)
    kept = len(reader.train.labels)
    return reader.train, Selection(before, kept, table, figures, reader.provenance())


def _listed(train: LabelledCorpus, left: Rows, what: str, scores: Scores) -> pa.Table:
    keys = train.corpus.take(left).keys()
    return pa.table(
        {
            "row": pa.array([train.corpus.where(row) for row in left.tolist()], pa.string()),
            "key": pa.array([key.tobytes().hex() for key in keys], pa.string()),
            "rule": pa.array([what] * len(left), pa.string()),
            "score": pa.array(scores[left], pa.float64()),
        }
    )


def _apply(
    rule: SelectRule, reader: "_Reader", space: LabelSpace, what: str
) -> tuple[Scores, Rows]:
    """The score of each row, and the rows kept, ascending."""
    labels = reader.train.labels
    if isinstance(rule, DifferenceRule | LearnabilityRule):
        scores = _ratios(rule, reader, space, what)
        shuffled = in_random_order(reader.keys(), rule.seed)
        return scores, largest(scores, _count(rule.keep, len(scores), what), shuffled)
    if isinstance(rule, BalanceRule):
        clusters = _clusters(rule, reader, space, what)
        shuffled = in_random_order(reader.keys(), rule.seed)
        if rule.most is not None:
            kept = at_most_of_each(clusters, rule.most, shuffled)
        else:
            count = _count(rule.keep or 0, len(clusters), what)
            kept = np.sort(balanced(clusters, shuffled, MISSING)[:count])
        return clusters.astype(np.float64), kept
    if isinstance(rule, AgreementRule):
        _require_classes(space, what)
        scores = reader.logits(
            rule.teacher, rule.feature, what, lambda logits, rows: agrees(logits, labels[rows])
        )
        return scores, np.flatnonzero(scores)
    assert isinstance(rule, BetweenRule)
    measure = entropy if isinstance(rule, EntropyRule) else confidence
    scores = reader.logits(rule.teacher, rule.feature, what, lambda logits, rows: measure(logits))
    return scores, within(scores, rule.least, rule.most)


def _count(keep: int | float, rows: int, what: str) -> int:
    if isinstance(keep, float):
        return max(1, round(keep * rows))
    if keep > rows:
        raise JobError(f"{what}: keep {keep}: only {rows} rows are there; set at most as many")
    return keep


def _ratios(
    rule: DifferenceRule | LearnabilityRule, reader: "_Reader", space: LabelSpace, what: str
) -> Scores:
    if isinstance(rule, DifferenceRule):
        above, below = rule.larger, rule.smaller
    else:
        above, below = rule.reference, rule.learner
    if reader.is_of_tokens(above, rule.feature, what):
        (sums, tokens), (others, _) = (
            reader.token_sums(name, rule.feature, what) for name in (above, below)
        )
        return log_ratio(sums, others, tokens)
    if isinstance(rule, DifferenceRule):
        raise JobError(f"{what}: feature {rule.feature!r} has no number for each token of a text")
    _require_classes(space, what)
    labels = reader.train.labels
    if (unlabelled := int((labels == MISSING).sum())) > 0:
        raise JobError(f"{what}: {unlabelled} rows have no label, and so no loss of class logits")
    above_N, below_N = (
        reader.logits(
            name,
            rule.feature,
            what,
            lambda logits, rows: log_probs_of_labels(logits, labels[rows]),
            space.num_labels,
        )
        for name in (above, below)
    )
    return log_ratio(above_N, below_N, np.ones(len(labels), dtype=np.int64))


def _clusters(rule: BalanceRule, reader: "_Reader", space: LabelSpace, what: str) -> Rows:
    if rule.teacher is None:
        _require_classes(space, what)
        return reader.train.labels.astype(np.int64)
    numbers = reader.logits(
        rule.teacher,
        rule.feature,
        what,
        lambda values, rows: values[:, 0] if values.shape[1] == 1 else values.argmax(axis=1),
        least=1,
    )
    return numbers.astype(np.int64)


def _require_classes(space: LabelSpace, what: str) -> None:
    if space.task != "classification":
        raise JobError(f"{what}: reads classes, and the job has none; name a label_column of them")


class _Reader:
    """The features of teachers at the rows that are left."""

    def __init__(
        self, job: DistillJob, train: LabelledCorpus, columns: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._job, self.train, self._columns = job, train, columns
        self._opened: dict[str, Answers] = {}

    def provenance(self) -> dict[str, dict[str, str | None]]:
        """The teachers that were read."""
        return {
            name: {
                "teacher_fingerprint": answers.cache.teacher.fingerprint,
                "cache_digest": answers.digest,
            }
            for name, answers in self._opened.items()
        }

    def keys(self) -> npt.NDArray[np.uint8]:
        """Keys of the rows as the student reads them."""
        return self.train.corpus.keys()

    def skip_missing(self) -> None:
        """Leave out rows that some teacher's cache lacks, if bad rows are skipped. Raises
        MissingKeysError."""
        for number, rule in enumerate(self._job.select):
            for name in rule.teachers:
                feature = str(getattr(rule, "feature"))  # noqa: B009
                cache = self._cache(name, feature, f"select.{number} ({rule.name})")
                own = self.train.corpus.of_columns(self._columns[name])
                missing = np.flatnonzero(cache.find(own.keys(), feature) < 0)
                if not len(missing):
                    continue
                if not self._job.skip_bad_rows or len(missing) == len(own):
                    raise missing_keys(cache, own, missing, [feature])
                self.train = self.train.without(missing, f"not in the cache of {name}")

    def is_of_tokens(self, name: str, feature: str, what: str) -> bool:
        """Whether a feature has several rows a text."""
        return self._cache(name, feature, what).feature_spec(feature).axis is not None

    def token_sums(self, name: str, feature: str, what: str) -> tuple[Scores, Rows]:
        """The sum of a feature over the tokens of each text, and their number."""
        cache = self._cache(name, feature, what)
        spec = cache.feature_spec(feature)
        if spec.axis is None or spec.shape or spec.whole:
            raise JobError(f"{what}: {name}: {feature!r} is not one number for each token")
        rows, ragged = self._rows(name, cache, feature), cache.ragged(feature)
        lengths, sums = ragged.lengths(rows), np.zeros(len(rows))
        for start in range(0, len(rows), _BLOCK_ROWS):
            found = ragged.gather(rows[start : start + _BLOCK_ROWS])
            text_of = np.repeat(np.arange(len(found)), found.lengths)
            values = found.values.astype(np.float64)
            there = slice(start, start + len(found))
            sums[there] = np.bincount(text_of, weights=values, minlength=len(found))
        return sums, lengths

    def logits(
        self,
        name: str,
        feature: str,
        what: str,
        measure: Callable[[npt.NDArray[Any], Rows], npt.NDArray[Any]],
        classes: int | None = None,
        least: int = 2,
    ) -> Scores:
        """A measure of each text's row of numbers [B, K], at the rows [B]."""
        cache = self._cache(name, feature, what)
        spec = cache.feature_spec(feature)
        if spec.axis is not None or spec.coding is not None or spec.values_per_row < least:
            raise JobError(f"{what}: {name}: {feature!r} is {spec.shown}, not a number a class")
        if classes is not None and spec.values_per_row != classes:
            raise JobError(
                f"{what}: {name}: {feature!r} has {spec.values_per_row} classes, the job {classes}"
            )
        rows, scores = self._rows(name, cache, feature), np.zeros(len(self.train.labels))
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = np.arange(start, min(start + _BLOCK_ROWS, len(rows)))
            values = np.asarray(cache[feature].gather(rows[block])).reshape(len(block), -1)
            scores[block] = measure(values, block)
        return scores

    def _rows(self, name: str, cache: Cache, feature: str) -> Rows:
        return cache.find(self.train.corpus.of_columns(self._columns[name]).keys(), feature)

    def _cache(self, name: str, feature: str, what: str) -> Cache:
        if name not in self._opened:
            self._opened[name] = open_answers(self._job.all_teachers[name])
        answers = self._opened[name]
        if feature not in answers.cache.features:
            raise JobError(
                f"{what}: teacher {name} has no feature {feature!r}; it has "
                f"{', '.join(answers.cache.features)}"
            )
        own = self.train.corpus.of_columns(self._columns[name])
        self._opened[name] = answers.of(feature, [own])
        return self._opened[name].cache
