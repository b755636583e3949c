"""The sources of a run: features of teachers in open caches, joined to the rows of its corpora.

A source is joined by the key of the columns that its teacher read, which may be others than those
that the student reads: hints, retrieved documents, translations.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache_schemas.errors import JobError, MissingFeatureError, MissingKeysError
from ..cache_schemas.features import (
    GENERATED_IDS,
    GENERATED_LENGTHS,
    TOKEN_IDS,
    TOKENS,
    FeatureSpec,
)
from ..cache_schemas.keys import KeyArray
from ..cache_schemas.teachers import TeacherSpec
from ..stages.corpus.corpus import Corpus
from ..stages.corpus.reading import column_name
from ..stages.distill.controls import Control, among_others, shuffled
from ..stages.distill.order import epoch_order
from ..stages.distill.schedules import ALIGNER_STREAM
from ..stages.distill.settings import Placement
from ..stages.store.format.rows import Rows
from ..stages.store.reading.feature_array import FeatureArray, RaggedArray, StackedArray
from ..stages.store.reading.prefetch import BlockOrder
from ..stages.store.reading.reader import Cache
from ..stages.store.transfer.mirror import ToCome
from .answers import SHOWN_MISSING, Answers, missing_keys, open_answers
from .distill_job import DistillJob
from .objective_keys import TeacherKeys
from .terms import Reading


@dataclass(frozen=True, slots=True)
class Columns:
    """The text columns of a corpus that several read: `names` of all, first those of the student,
    and which of them the student and each source read, in their order; `rejected`: those of the
    rejected responses, whose own name is the next one, if there are any."""

    names: tuple[str, ...]
    student: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    rejected: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, student: Sequence[str], sources: Sequence[Sequence[str]], rejected: Sequence[str] = ()
    ) -> "Columns":
        """The columns of a student, of rejected responses and of sources, as a job names them."""
        names: dict[str, str] = {}
        every = (*student, *rejected, *(column for own in sources for column in own))
        for column in every:
            names.setdefault(column_name(column), column)
        indices = {name: index for index, name in enumerate(names)}

        def of_one(columns: Sequence[str]) -> tuple[int, ...]:
            return tuple(indices[column_name(column)] for column in columns)

        read = tuple(map(of_one, sources))
        return cls(tuple(names.values()), of_one(student), read, of_one(rejected))

    @property
    def of_responses(self) -> tuple[str, ...]:
        """The names of those of the student, and of the rejected response."""
        return self.names[: 1 + max((*self.student, *self.rejected))]

    def divided(self, sources: int) -> tuple["Columns", tuple[tuple[int, ...], ...]]:
        """The columns of the student and the first sources alone, and those of the others."""
        first = self.sources[:sources]
        names = 1 + max(index for own in (self.student, self.rejected, *first) for index in own)
        return replace(self, names=self.names[:names], sources=first), self.sources[sources:]


@dataclass(frozen=True, slots=True)
class Source:
    """A feature of a teacher; `columns` are the indices of this teacher's text columns in a corpus
    with the columns of all."""

    answers: Answers
    spec: FeatureSpec
    columns: tuple[int, ...]
    control: Control
    placement: Placement | None
    may_lack: bool = False
    """Whether training rows may be missing in the cache."""
    of_queries: Answers | None = None
    """Where the features of queries are, if their teacher is another; rows behind those of
    `answers`."""

    @property
    def cache(self) -> Cache:
        """The open cache."""
        return self.answers.cache

    @property
    def feature(self) -> FeatureArray:
        """The feature of whole texts."""
        own = self.cache[self.spec.name]
        if self.of_queries is None:
            return own
        return StackedArray(own, self.of_queries.cache[self.spec.name])

    @property
    def of_tokens(self) -> RaggedArray:
        """The feature of tokens, all or predicted ones."""
        return self.cache.ragged(self.spec.name)

    @property
    def values(self) -> FeatureArray:
        """The numbers of all rows, whatever they are about."""
        return self.feature if self.spec.axis is None else self.of_tokens.values

    def in_file_order(self, rows: Rows) -> Rows:
        """Numbers that grow along the files, for the same cache rows."""
        stored = self.feature if self.spec.axis is None else self.of_tokens
        return stored.in_file_order(rows)

    @property
    def teacher(self) -> TeacherSpec:
        """Spec of the teacher."""
        return self.cache.teacher.spec

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the teacher."""
        return self.cache.teacher.fingerprint

    def find(self, keys: KeyArray) -> Rows:
        """The cache row of each key [N], -1 where there is none."""
        return self.cache.find(keys, self.spec.name)

    def find_texts(self, keys: KeyArray, queries: npt.NDArray[np.bool_]) -> Rows:
        """The same, of texts of which some are queries."""
        found = self.find(keys)
        if self.of_queries is not None:
            rows = self.of_queries.cache.find(keys[queries], self.spec.name)
            found[queries] = np.where(rows < 0, -1, rows + len(self.cache[self.spec.name]))
        return found

    def fetch_ahead(self, rows: Rows) -> ToCome | None:
        """Start downloading what rows hold, in their order."""
        if self.of_queries is None:
            return self.answers.fetch_ahead(self.spec.name, rows)
        own = len(self.cache[self.spec.name])
        first = self.answers.fetch_ahead(self.spec.name, rows[rows < own])
        behind = rows[rows >= own] - own
        return sum_to_come([first, self.of_queries.fetch_ahead(self.spec.name, behind)])

    def provenance(self) -> dict[str, Any]:
        """Provenance of its features."""
        found = {
            "cache_digest": self.answers.digest,
            "teacher_fingerprint": self.fingerprint,
            "teacher": self.teacher.model_dump(mode="json"),
            "feature": self.spec.name,
        }
        if self.of_queries is not None:
            found["query_cache_digest"] = self.of_queries.digest
            found["query_teacher_fingerprint"] = self.of_queries.cache.teacher.fingerprint
        return found


def open_sources(
    readings: Mapping[str, Reading],
    teachers: Mapping[str, TeacherKeys],
    columns: Columns,
    corpora: Sequence[Corpus],
    held_out: Mapping[tuple[int, ...], Corpus],
) -> dict[str, Source]:
    """The features that are read, by the name of the source, in caches of which as little is opened
    as some corpora need, and texts `held_out`, by the columns that are read. Raises CacheError, and
    MissingFeatureError for a feature that is not there, or not named where there are several."""
    opened: dict[str, Answers] = {}
    sources: dict[str, Source] = {}
    for reading, own in zip(readings.values(), columns.sources, strict=True):
        keys = teachers[reading.teacher]
        if reading.teacher not in opened:
            opened[reading.teacher] = open_answers(keys)
        answers = opened[reading.teacher]
        choose = {None: feature_of_texts, TOKENS: _feature_along_tokens}.get(
            reading.axis, _feature_of_predictions
        )
        name = choose(answers.cache, reading, len(teachers) > 1)
        read = [corpus.of_columns(own) for corpus in corpora]
        answers = answers.of(name, [*read, *([held_out[own]] if own in held_out else [])])
        cache = answers.cache
        spec = (cache[name] if reading.axis is None else cache.ragged(name)).spec
        control, placement = keys.parsed_control, keys.placement
        may_lack = keys.missing != "refuse"
        sources[reading.source] = Source(answers, spec, own, control, placement, may_lack)
    return sources


def feature_of_texts(cache: Cache, reading: Reading, of_several: bool) -> str:
    """The name of the feature of whole texts that is read. Raises MissingFeatureError."""
    if reading.feature is None and len(cache.features) > 1:
        prefix = f"{reading.teacher}: " if of_several else ""
        raise MissingFeatureError(
            f"{prefix}job key 'feature' is missing; the teacher has {', '.join(cache.features)}"
        )
    name = reading.feature or cache.features[0]
    if reading.logits_for is not None and name not in cache:
        raise MissingFeatureError(
            f"feature {name!r}: teacher {cache.teacher.fingerprint[:12]} has "
            f"{', '.join(cache.features)}; {reading.logits_for} needs the logits of a classifier ("
            "`armada precompute --teacher classifier:SOURCE`)"
        )
    if name not in cache and (layer := re.fullmatch(r"layer_(\d+)", name)):
        raise MissingFeatureError(
            f"feature {name!r}: teacher {cache.teacher.fingerprint[:12]} "
            f"({cache.teacher.spec.kind}) has {', '.join(cache.features) or 'none here'}; "
            f"precompute with layers=[{layer[1]}] and add_features=true"
        )
    return name


def _feature_along_tokens(cache: Cache, reading: Reading, of_several: bool) -> str:
    known = [
        name
        for name in cache.features
        if cache.feature_spec(name).axis == TOKENS and not cache.feature_spec(name).whole
    ]
    named = known[0] if reading.feature is None and len(known) == 1 else reading.feature
    if named in known and TOKEN_IDS in cache.features:
        return str(named)
    prefix = f"{reading.teacher}: " if of_several else ""
    what = "is missing" if reading.feature is None else f"{reading.feature!r} is not of tokens"
    asked = re.fullmatch(r"(token_states|attention)_(\d+)", reading.feature or "")
    options = {"token_states": "token_layers", "attention": "attention_layers"}
    wanted = [options[asked[1]]] if asked else options.values()
    more = " or ".join(f"{option}=[{asked[2] if asked else 'N'}]" for option in wanted)
    raise MissingFeatureError(
        f"{prefix}job key 'feature': {what}; teacher {cache.teacher.fingerprint[:12]} "
        f"({cache.teacher.spec.kind}) has {', '.join(known) or 'none that is'}; precompute with "
        f"{more} of an encoder, and add_features=true to keep what is cached"
    )


_RENAMED = {"draws": "samples", "samples": "draws"}
"""Sampled tokens have their earlier name in caches, and in jobs, of an earlier release."""


def _feature_of_predictions(cache: Cache, reading: Reading, of_several: bool) -> str:
    teacher = cache.teacher.spec
    if "tokenizer" not in teacher.settings:
        raise JobError(
            f"job key 'teacher': a {teacher.kind} has no token features; name a causal_lm teacher"
        )
    if reading.feature == GENERATED_IDS:
        if GENERATED_IDS not in cache.features:
            raise JobError(
                "responses=generated: none in the cache; precompute with max_new_tokens, and "
                "add_features=true to keep what is cached"
            )
        if GENERATED_LENGTHS in cache.features:
            raise JobError(
                "responses=generated: the cache has several responses to each prompt, and a "
                "student reads one; export them to a corpus, or precompute one response a prompt"
            )
        return GENERATED_IDS
    if reading.response is not None:
        return _feature_of_own_tokens(cache, reading)
    known = [name for name in cache.features if teaches_tokens(cache.feature_spec(name))]
    if reading.feature in known:
        return str(reading.feature)
    if _RENAMED.get(reading.feature or "") in known:
        return _RENAMED[str(reading.feature)]
    if reading.feature is None and len(known) == 1:
        return known[0]
    prefix = f"{reading.teacher}: " if of_several else ""
    what = (
        "is missing" if reading.feature is None else f"{reading.feature!r} is not a token feature"
    )
    raise JobError(
        f"{prefix}job key 'feature': {what}; the teacher has {', '.join(known) or 'none that does'}"
    )


def _feature_of_own_tokens(cache: Cache, reading: Reading) -> str:
    """A feature of the log-probabilities of each text's own tokens."""
    known = [name for name in cache.features if is_of_own_tokens(cache.feature_spec(name))]
    if reading.feature in known:
        return str(reading.feature)
    raise MissingFeatureError(
        f"feature {reading.feature!r}: teacher {cache.teacher.fingerprint[:12]} "
        f"({cache.teacher.spec.kind}) has {', '.join(known) or 'no such feature'} of texts' own "
        "tokens; precompute with own_log_probs=true, and add_features=true to keep what is cached"
    )


def is_of_own_tokens(spec: FeatureSpec) -> bool:
    """Whether a feature is a number for each predicted token of the text, such as its
    log-probability."""
    floats = np.dtype(spec.dtype).kind == "f"
    return spec.axis == "predictions" and spec.shape == () and spec.coding is None and floats


def teaches_tokens(spec: FeatureSpec) -> bool:
    """Whether a feature holds probabilities of predicted tokens."""
    several = spec.coding is not None or not spec.whole
    return spec.axis == "predictions" and several and spec.shape != ()


def missing_of_sources(
    sources: Mapping[str, Source], corpus: Corpus, rows: Mapping[str, Rows]
) -> MissingKeysError:
    """The error for rows of a corpus that are missing in sources' caches, counted for each."""
    lacking = {name: np.flatnonzero(found < 0) for name, found in rows.items()}
    lacking = {name: missing for name, missing in lacking.items() if len(missing)}
    if len(sources) == 1:
        ((name, missing),) = lacking.items()
        source = sources[name]
        return missing_keys(source.cache, corpus, missing, [source.spec.name])
    counts = ", ".join(
        f"{len(missing)} in that of {name} ({sources[name].cache.teacher.fingerprint[:12]})"
        for name, missing in lacking.items()
    )
    every = np.unique(np.concatenate(list(lacking.values())))
    first = "; ".join(corpus.where(int(row)) for row in every[:SHOWN_MISSING])
    return MissingKeysError(
        f"of {len(corpus)} rows, not in the cache: {counts}; run `armada precompute` on them with "
        f"each teacher's text columns, or skip such rows with skip_bad_rows=true"
        f". First: {first}",
        every.tolist(),
    )


def rows_by_first_use(
    job: DistillJob, source: Source, train: Rows, aligner_first: bool, own_draw: str
) -> Rows:
    """The cache rows of the training examples in the order in which the first epoch of the first
    seed reads them."""
    seed, stream = job.seeds[0], ALIGNER_STREAM if aligner_first else 0
    if source.control.name == "shuffled":
        train = shuffled(train, seed, own_draw)
    order: Rows = epoch_order(len(train), seed, 0, stream)
    if (source.placement or job.placement) == "streamed":
        windows = BlockOrder(source.in_file_order(among_others(train))).windows(seed, 0, stream)
        order = np.concatenate(list(windows))
    first = train[order]
    return first[first >= 0]


def sum_to_come(found: Sequence[ToCome | None]) -> ToCome | None:
    """Downloads of all caches together; None if there are none."""
    known = [each for each in found if each is not None]
    if not known:
        return None
    return ToCome(sum(each.shards for each in known), sum(each.bytes for each in known))
