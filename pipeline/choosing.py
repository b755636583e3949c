"""`select`: the training rows that a job's rules choose, before anything is tokenized.

Scores are read from caches of the job's teachers, a block of rows at a time, joined by the key of
the columns that each of them read. What is left out is counted by rule, and listed in the run's
folder: `left_out.parquet`. The rules are in `../stages/distill/choosing.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..cache_schemas.errors import JobError
from ..cache_schemas.features import FeatureSpec
from ..stages.choosing import balanced, in_random_order
from ..stages.corpus.label_kinds import one_a_row
from ..stages.corpus.labels import MISSING, LabelSpace
from ..stages.distill.choosing import (
    Scores,
    agrees,
    at_most_of_each,
    confidence,
    domain_shares,
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
    DomainGapRule,
    EntropyRule,
    LearnabilityRule,
    ScoreRule,
    SelectRule,
)
from .distill_job import DistillJob
from .labelled_corpus import LabelledCorpus

LEFT_OUT = "left_out.parquet"
_NONE = np.empty(0, dtype=np.int64)
_BLOCK_ROWS = 65536
_MOST_DOMAINS = 1000
"""A figure of each stands in the metrics of a run."""
_DOMAINS = "domain_column:"
"""Key of the column of domains among those that rules read; no name of a teacher has a colon."""


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
    digest: str = ""
    """Digest of the rows that were chosen among, as the student reads them."""

    def figures(self) -> dict[str, Any]:
        """Counts, for the metrics of a run."""
        return {"of": self.of, "kept": self.kept, "rules": self.rules}

    def chosen_among(self) -> dict[str, Any]:
        """Teachers read and rows before, for the provenance of a run."""
        return {"select": self.read, "unselected_digest": self.digest}

    def told(self) -> Iterator[str]:
        """A line for people about each rule."""
        for number, rule in enumerate(self.rules):
            what = f"select.{number} ({rule['rule']})"
            if "domains" in rule:
                shares = (f"{name} {each['share']:.1%}" for name, each in rule["domains"].items())
                yield f"{what}: draws by domain: {', '.join(shares)}"
            else:
                count = rule["kept"] + rule["left_out"]
                yield f"{what}: {rule['kept']:,} of {count:,} rows are kept"

    def write(self, folder: Path) -> None:
        """List what was left out."""
        sink = pa.BufferOutputStream()
        pq.write_table(self.left_out, sink)
        write_atomic(folder / LEFT_OUT, [sink.getvalue().to_pybytes()])


def read_by_rules(job: DistillJob) -> dict[str, tuple[str, ...]]:
    """The text columns of each teacher that a job's rules read, and columns of domains under names
    that no teacher has."""
    teachers, found = job.all_teachers, dict[str, tuple[str, ...]]()
    for rule in job.rules:
        for name in rule.teachers:
            found[name] = teachers[name].text_column or _usual_columns(job)
        if isinstance(rule, DomainGapRule):
            found[_DOMAINS] = (rule.domain_column,)
    return found


def _usual_columns(job: DistillJob) -> tuple[str, ...]:
    """The text columns that a rule's teacher has read: all, or of a student that embeds each by
    itself the first one, a query or the only text."""
    return job.text_column[:1] if job.task == "embedding" else job.text_column


def select(
    job: DistillJob,
    train: LabelledCorpus,
    space: LabelSpace,
    student: tuple[int, ...],
    columns: Mapping[str, tuple[int, ...]],
) -> tuple[LabelledCorpus, Selection]:
    """The rows that all rules of a job leave. `student`, `columns`: indices of the text columns
    that the student and each teacher read. Raises JobError for a rule that leaves nothing or fits
    neither labels nor features, MissingKeysError for rows without a score, unless bad rows are
    skipped."""
    reader, digest = _Reader(job, train, student, columns), train.of_columns(student).digest()
    reader.skip_missing()
    before = len(reader.train.labels)
    listed, figures = [], []
    for number, rule in enumerate(job.rules):
        what = f"select.{number} ({rule.name})"
        if isinstance(rule, DomainGapRule):
            figures.append(_weigh(rule, reader, space, what))
            continue
        scores, chosen = _apply(rule, reader, space, what)
        count = len(reader.train.labels)
        if not len(chosen):
            finite = scores[np.isfinite(scores)]
            ends = f"; scores are {finite.min():.4g} to {finite.max():.4g}" if len(finite) else ""
            raise JobError(f"{what}: leaves none of {count} rows{ends}; loosen it")
        left = np.setdiff1d(np.arange(count), chosen)
        listed.append(_listed(reader, left, what, scores))
        figures.append({"rule": rule.name, "kept": len(chosen), "left_out": len(left)})
        reader.train = reader.train.take(chosen)
    table = pa.concat_tables(listed) if listed else _listed(reader, _NONE, "", np.zeros(0))
    kept = len(reader.train.labels)
    return reader.train, Selection(before, kept, table, figures, reader.provenance(), digest)


def _weigh(rule: DomainGapRule, reader: "_Reader", space: LabelSpace, what: str) -> dict[str, Any]:
    """Weights for the rows by their domains; figures of these."""
    teacher_N, learner_N, tokens_N = _log_probs(
        (rule.teacher, rule.learner), rule.feature, reader, space, what
    )
    names, domains_N = np.unique(reader.domains(), return_inverse=True)
    if len(names) < 2:
        raise JobError(
            f"{what}: domain_column {rule.domain_column!r} holds {str(names[0])!r} alone"
        )
    if len(names) > _MOST_DOMAINS:
        raise JobError(
            f"{what}: domain_column {rule.domain_column!r} holds {len(names):,} different names in "
            f"{len(domains_N):,} rows; name a column of at most {_MOST_DOMAINS:,} domains"
        )
    domains_N = domains_N.reshape(-1)
    shares_D = domain_shares(domains_N, learner_N, teacher_N, tokens_N, rule.strength)
    counts_D = np.bincount(domains_N)
    reader.train = replace(reader.train, weights=(shares_D / counts_D)[domains_N])
    count = len(domains_N)
    shown = {
        str(name): {"rows": int(rows), "share": round(float(share), 6)}
        for name, rows, share in zip(names, counts_D, shares_D, strict=True)
    }
    return {"rule": rule.name, "kept": count, "left_out": 0, "domains": shown}


def _listed(reader: "_Reader", left: Rows, what: str, scores: Scores) -> pa.Table:
    where, keys = reader.train.corpus.where, reader.keys(left)
    return pa.table(
        {
            "row": pa.array([where(row) for row in left.tolist()], pa.string()),
            "key": pa.array([key.tobytes().hex() for key in keys], pa.string()),
            "rule": pa.array([what] * len(left), pa.string()),
            "score": pa.array(scores[left], pa.float64()),
        }
    )


def _apply(
    rule: SelectRule, reader: "_Reader", space: LabelSpace, what: str
) -> tuple[Scores, Rows]:
    """The score of each row, and the rows kept, ascending."""
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
        labels = _classes(reader, space, what)
        scores = reader.logits(
            rule.teacher,
            rule.feature,
            what,
            lambda logits, rows: agrees(logits, labels[rows]),
            space,
        )
        return scores, np.flatnonzero(scores)
    assert isinstance(rule, BetweenRule)
    if isinstance(rule, ScoreRule):
        scores = reader.numbers(rule.teacher, rule.feature, what)
        return scores, within(scores, rule.least, rule.most)
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
        pair = (rule.larger, rule.smaller)
        if not reader.is_of_tokens(rule.larger, rule.feature, what):
            raise JobError(
                f"{what}: feature {rule.feature!r} has no number for each token of a text"
            )
    else:
        pair = (rule.reference, rule.learner)
    return log_ratio(*_log_probs(pair, rule.feature, reader, space, what))


def _log_probs(
    pair: tuple[str, str], feature: str, reader: "_Reader", space: LabelSpace, what: str
) -> tuple[Scores, Scores, Rows]:
    """Log-probabilities of the texts' own tokens, summed, of two teachers, and the number of tokens
    of the first; of class logits, those of the labels, and 1."""
    if reader.is_of_tokens(pair[0], feature, what):
        (sums, tokens), (others, _) = (reader.token_sums(name, feature, what) for name in pair)
        return sums, others, tokens
    labels = _classes(reader, space, what)
    if (unlabelled := int((labels == MISSING).sum())) > 0:
        raise JobError(f"{what}: {unlabelled} rows have no label, and so no loss of class logits")
    first, second = (
        reader.logits(
            name,
            feature,
            what,
            lambda logits, rows: log_probs_of_labels(logits, labels[rows]),
            space,
        )
        for name in pair
    )
    return first, second, np.ones(len(labels), dtype=np.int64)


def _clusters(rule: BalanceRule, reader: "_Reader", space: LabelSpace, what: str) -> Rows:
    if rule.teacher is None:
        return _classes(reader, space, what)
    reader.require_clusters(rule.teacher, rule.feature, what)
    numbers = reader.logits(
        rule.teacher,
        rule.feature,
        what,
        lambda values, rows: values[:, 0] if values.shape[1] == 1 else values.argmax(axis=1),
        least=1,
    )
    return numbers.astype(np.int64)


def _classes(reader: "_Reader", space: LabelSpace, what: str) -> Rows:
    """The class of each row, of probabilities the largest; -100 where there is none."""
    if space.task != "classification":
        raise JobError(f"{what}: reads classes, and the job has none; name a label_column of them")
    classes: Rows = one_a_row(reader.train.labels, space).astype(np.int64)
    return classes


def _require_same_classes(spec: FeatureSpec, space: LabelSpace, what: str) -> None:
    """Logits tell classes by position. Raises JobError for others than those of the job."""
    if spec.values_per_row != space.num_labels:
        raise JobError(f"{what} has {spec.values_per_row} classes, the job {space.num_labels}")
    if space.names and spec.labels and space.names != spec.labels:
        raise JobError(
            f"{what} has the classes {', '.join(spec.labels)}, the job {', '.join(space.names)}; "
            "give labels as the teacher's class ids"
        )


class _Reader:
    """The features of teachers at the rows that are left."""

    def __init__(
        self,
        job: DistillJob,
        train: LabelledCorpus,
        student: tuple[int, ...],
        columns: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._job, self.train, self._student, self._columns = job, train, student, columns
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

    def keys(self, rows: Rows | None = None) -> npt.NDArray[np.uint8]:
        """Keys of the rows, or of some, as the student reads them."""
        own = self.train.corpus.of_columns(self._student)
        return (own if rows is None else own.take(rows)).keys()

    def domains(self) -> list[str]:
        """The domain of each row."""
        own = self.train.corpus.of_columns(self._columns[_DOMAINS])
        names: list[str] = own.segments[0].to_pylist()
        return names

    def skip_missing(self) -> None:
        """Leave out rows that some teacher's cache lacks, if bad rows are skipped. Raises
        MissingKeysError."""
        for number, rule in enumerate(self._job.rules):
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
        classes: LabelSpace | None = None,
        least: int = 2,
    ) -> Scores:
        """A measure of each text's row of numbers [B, K], at the rows [B]; `classes` are those of
        the job, if they have to be the same."""
        cache = self._cache(name, feature, what)
        spec = cache.feature_spec(feature)
        if spec.axis is not None or spec.coding is not None or spec.values_per_row < least:
            raise JobError(f"{what}: {name}: {feature!r} is {spec.shown}, not a number a class")
        if classes is not None:
            _require_same_classes(spec, classes, f"{what}: {name}: {feature!r}")
        rows, scores = self._rows(name, cache, feature), np.zeros(len(self.train.labels))
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = np.arange(start, min(start + _BLOCK_ROWS, len(rows)))
            values = np.asarray(cache[feature].gather(rows[block])).reshape(len(block), -1)
            scores[block] = measure(values, block)
        return scores

    def numbers(self, name: str, feature: str, what: str) -> Scores:
        """The number of each text."""
        spec = self._cache(name, feature, what).feature_spec(feature)
        if spec.axis is not None or spec.values_per_row != 1:
            raise JobError(f"{what}: {name}: {feature!r} is {spec.shown}, not a number a text")
        return self.logits(name, feature, what, lambda values, rows: values[:, 0], least=1)

    def require_clusters(self, name: str, feature: str, what: str) -> None:
        """Raise JobError for a feature of one number a text that is not the number of a cluster."""
        spec = self._cache(name, feature, what).feature_spec(feature)
        if spec.values_per_row == 1 and np.dtype(spec.dtype).kind == "f":
            raise JobError(
                f"{what}: {name}: {feature!r} is {spec.shown}, not the number of a cluster; name "
                "one of `armada cache derive --rule clusters`, or logits"
            )

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
