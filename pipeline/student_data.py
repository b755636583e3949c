"""Corpora and caches of a distill job become tokens, labels and features, all checked first."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..cache_schemas.errors import JobError, MissingKeysError
from ..cache_schemas.features import TOKEN_IDS, TOKENS
from ..cache_schemas.keys import example_key
from ..stages.corpus.corpus import Corpus, read_corpus
from ..stages.corpus.label_kinds import one_a_row
from ..stages.corpus.labels import (
    LabelSpace,
    LabelValues,
    count_missing,
    is_missing,
    label_values,
)
from ..stages.distill.batches import DistillDataset, Features
from ..stages.distill.controls import Control, controlled
from ..stages.distill.objectives.base import Shape
from ..stages.distill.token_features import TokenGather, other_tokens
from ..stages.distill.tokens import Tokens, encode
from ..stages.language.tokens import tokenizer_digest
from ..stages.store.format.rows import Rows
from ..stages.store.transfer.mirror import ToCome
from ..stages.tokenizing.unknown import SAMPLE, mostly_unknown
from .distill_job import CorpusKeys, DistillJob
from .measured import Measured
from .messages import LOGGER
from .sources import (
    Source,
    missing_of_sources,
    rows_by_first_use,
    sum_to_come,
)

if TYPE_CHECKING:
    from .choosing import Selection

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class LabelledCorpus:
    """Examples with their labels; `cache_rows` are their cache rows by source name, if any are
    read."""

    corpus: Corpus
    labels: LabelValues
    cache_rows: Mapping[str, Rows] = field(default_factory=dict)
    weights: npt.NDArray[np.float64] | None = None
    """How often each example comes in an epoch, but for a factor; None: once."""
    rejected: Corpus | None = None
    """The same prompts with rejected responses, where the corpus has them."""

    def joined(
        self,
        sources: "Mapping[str, Source]",
        skip_missing: bool,
        may_lack: bool = False,
        teach_themselves: bool = False,
    ) -> "LabelledCorpus":
        """The same with the cache rows of every example; those that some source lacks are skipped
        and listed, or raise MissingKeysError. `may_lack`: sources that may lack rows do, -1, as
        long as they have one and each example has a label or some source's answer, or texts
        `teach_themselves`, as those of a language model do."""
        read = {source.columns for source in sources.values()}
        keys = {columns: self.corpus.of_columns(columns).keys() for columns in read}
        rows = {name: source.find(keys[source.columns]) for name, source in sources.items()}
        lacking = {
            name
            for name, source in sources.items()
            if may_lack and source.may_lack and (rows[name] >= 0).any()
        }
        return self.with_rows(
            rows,
            skip_missing,
            lambda: missing_of_sources(sources, self.corpus, rows),
            lacking,
            teach_themselves,
        )

    def with_rows(
        self,
        rows: Mapping[str, Rows],
        skip_missing: bool,
        error: Callable[[], MissingKeysError],
        lacking: Collection[str] = (),
        teach_themselves: bool = False,
    ) -> "LabelledCorpus":
        """The same with cache rows, -1 where there is none: such examples are left out and listed,
        or raise `error`; but those that only the sources `lacking` have none of, if something is
        left to learn."""
        alone = self._has_label | teach_themselves
        learned = np.logical_or.reduce([alone, *(found >= 0 for found in rows.values())])
        needed = [found >= 0 for name, found in rows.items() if name not in lacking]
        kept = np.logical_and.reduce([learned, *needed])
        if not kept.all() and not (skip_missing and kept.any()):
            raise error()
        joined = replace(self, cache_rows=rows)
        return joined.without(np.flatnonzero(~kept), "not in the cache")

    def without(self, left_out: Rows, problem: str) -> "LabelledCorpus":
        """The same without some examples, each listed with its problem."""
        if not len(left_out):
            return self
        kept = np.setdiff1d(np.arange(len(self.labels)), left_out)
        corpus = self.corpus.without(left_out, problem)
        return replace(self.take(kept), corpus=corpus)

    def beside(self, rejected: Corpus) -> "LabelledCorpus":
        """The same with a rejected response to each prompt."""
        return replace(self, rejected=rejected)

    def take(self, rows: Rows) -> "LabelledCorpus":
        """Only the given examples, in the order given."""
        taken = {name: found[rows] for name, found in self.cache_rows.items()}
        weights = None if self.weights is None else self.weights[rows]
        rejected = None if self.rejected is None else self.rejected.take(rows)
        return LabelledCorpus(self.corpus.take(rows), self.labels[rows], taken, weights, rejected)

    def of_columns(self, columns: Sequence[int]) -> "LabelledCorpus":
        """The same examples with some of their text columns."""
        return replace(self, corpus=self.corpus.of_columns(columns))

    @property
    def row_weights(self) -> npt.NDArray[np.float64] | None:
        """Weights of the examples' losses [N], if the corpus has them, times the power of two by
        which the largest is from 1 to below 2: only how they compare counts, and tensors and sums
        have to hold any of them."""
        if self.corpus.weights is None:
            return None
        weights: npt.NDArray[np.float64] = self.corpus.weights.to_numpy(zero_copy_only=False)
        _, exponent = np.frexp(weights.max(initial=0))
        scaled: npt.NDArray[np.float64] = np.ldexp(weights, 1 - exponent)
        return scaled

    @property
    def _has_label(self) -> npt.NDArray[np.bool_]:
        return ~is_missing(self.labels)

    @property
    def labelled(self) -> int:
        """Number of examples with a label."""
        return len(self.labels) - count_missing(self.labels)

    def texts(self) -> Iterator[str]:
        """All segments, for a vocabulary."""
        return self.corpus.texts()

    def warn_of_unknown(self, tokenizer: Any) -> None:
        """Warn if most tokens are unknown to the student's tokenizer."""
        sample = np.unique(np.linspace(0, len(self.corpus) - 1, SAMPLE).astype(np.int64))
        unknown = mostly_unknown(tokenizer, list(self.corpus.take(sample).texts()))
        if unknown is not None:
            LOGGER.warning(unknown.of("student"))

    def tokens(self, tokenizer: Any, max_length: int) -> Tokens:
        """Token ids of all examples."""
        examples = [segments for batch in self.corpus.batches() for segments in batch]
        return encode(tokenizer, examples, max_length)

    def dataset(self, tokens: Tokens, gathers: Mapping[str, Features]) -> DistillDataset:
        """Token ids and labels of all examples, with `gathers` for their features."""
        return DistillDataset(tokens, self.labels, gathers, self.names, self.weights)

    def digest(self) -> str:
        """Digest of these examples with these labels, in this order."""
        digest = hashlib.blake2b(self.corpus.keys().tobytes(), digest_size=16)
        digest.update(self.labels.tobytes())
        if self.rejected is not None:
            digest.update(self.rejected.keys().tobytes())
        return digest.hexdigest()

    def weights_digest(self) -> str | None:
        """Digest of the weights of their losses; None without any."""
        if self.row_weights is None:
            return None
        return hashlib.blake2b(self.row_weights.tobytes(), digest_size=16).hexdigest()

    def names(self, rows: Rows) -> list[str]:
        """Positions of examples in files, and their keys."""
        segments = self.corpus.examples(rows)
        keys = (example_key(each).hex() for each in segments)
        origins = map(self.corpus.where, rows.tolist())
        return [f"{origin} (key {key})" for origin, key in zip(origins, keys, strict=True)]


@dataclass(frozen=True)
class StudentData:
    """Data of a run: training and validation examples, label space, and the sources of teachers'
    features by name."""

    train: LabelledCorpus
    validation: LabelledCorpus | None
    space: LabelSpace
    metric: str
    sources: Mapping[str, Source] = field(default_factory=dict)
    read_digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of training texts that sources read, if they differ from the student's."""
    selection: "Selection | None" = None
    """What the job's rules left of the training rows."""
    measured: Measured = field(default_factory=Measured)
    """Sources that the student is compared with on validation texts."""
    _encoded: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def encoded_once(
        self, what: str, tokenizer: Any, most: int, encode: Callable[[], Made]
    ) -> Made:
        """What `encode` makes of some texts, to at most so many tokens: once for all seeds whose
        students have the same tokenizer. Not to be changed."""
        kind = type(tokenizer).__name__, tokenizer.padding_side, tokenizer_digest(tokenizer)
        key = (what, most, *kind)
        if key not in self._encoded:
            self._encoded[key] = encode()
        made: Made = self._encoded[key]
        return made

    @cached_property
    def of_texts(self) -> dict[str, Source]:
        """The sources with features of whole texts, or of all their tokens; others have features of
        predicted tokens."""
        return {n: each for n, each in self.sources.items() if each.spec.axis in (None, TOKENS)}

    @property
    def rows_of_texts(self) -> Mapping[str, Rows]:
        """The cache row of each training text in the caches of sources, -1 where there is none."""
        return self.train.cache_rows

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the features of whole texts."""
        return {name: source.spec.shape for name, source in self.of_texts.items()}

    @property
    def from_afar(self) -> list[str]:
        """Sources whose shards are downloaded during the run."""
        return [name for name, source in self.of_texts.items() if source.answers.mirror is not None]

    @cached_property
    def answered(self) -> dict[str, int]:
        """Training examples that have an answer, of each source that may lack some."""
        return {
            name: int((self.train.cache_rows[name] >= 0).sum())
            for name, source in self.sources.items()
            if source.may_lack
        }

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """Digests of the examples, computed once for all seeds."""
        weights = self.train.weights_digest()
        return {
            "train_digest": self.train.digest(),
            "validation_digest": self.validation.digest() if self.validation else None,
            **({"weights_digest": weights} if weights else {}),
        }

    def provenance(self) -> dict[str, Any]:
        """Provenance of the teachers' features, for the record of a run."""
        by_teacher = {
            name: source.provenance()
            | ({"read_digest": self.read_digests[name]} if name in self.read_digests else {})
            for name, source in self.sources.items()
        }
        measured = self.measured.provenance()
        if len(by_teacher) > 1:
            return {"teachers": by_teacher} | measured
        nothing = dict.fromkeys(("cache_digest", "teacher_fingerprint", "teacher", "feature"))
        return next(iter(by_teacher.values()), nothing) | measured

    def gathers(self, seed: int, pad_left: bool = False) -> dict[str, Features]:
        """Readers of the training features, each source under its control; `pad_left`: those along
        tokens have padding first."""
        found: dict[str, Features] = {}
        for (name, source), of in zip(self.of_texts.items(), self._own_draws(), strict=True):
            rows, control = self.train.cache_rows[name], source.control
            if source.spec.axis == TOKENS:
                found[name] = TokenGather(source.of_tokens, rows, pad_left)
            else:
                labels = one_a_row(self.train.labels, self.space) if control.of_logits else None
                found[name] = controlled(source.feature, rows, control, seed, of, labels)
        return found

    def validation_gathers(self, pad_left: bool = False) -> dict[str, Features]:
        """Readers of the validation features, as cached; none if there are labels."""
        found: dict[str, Features] = {}
        for name, rows in self.validation.cache_rows.items() if self.validation else ():
            source = self.sources[name]
            if source.spec.axis == TOKENS:
                found[name] = TokenGather(source.of_tokens, rows, pad_left)
            else:
                found[name] = controlled(source.feature, rows, Control("none"), 0)
        return found

    def require_same_tokens(
        self, labelled: LabelledCorpus, ids: npt.NDArray[Any], offsets: Rows, tokenizer: Any
    ) -> None:
        """Raise JobError if the student's token ids of some texts, laid end to end, are not those
        of a teacher whose features are along the tokens."""
        for name in labelled.cache_rows.keys() & self.of_texts.keys():
            source, rows = self.sources[name], labelled.cache_rows[name]
            if source.spec.axis != TOKENS:
                continue
            token_ids = source.cache.ragged(TOKEN_IDS)
            differ = other_tokens(token_ids, rows, ids, offsets)
            if len(differ):
                first = int(differ[0])
                theirs = token_ids[int(rows[first])]
                ours = ids[offsets[first] : offsets[first + 1]]
                both = (tokenizer.convert_ids_to_tokens(e.tolist()) for e in (theirs, ours))
                told = (f"{each}"[:120] for each in both)
                raise JobError(
                    f"{labelled.corpus.where(first)}: its tokens differ from the teacher's "
                    f"({len(differ)} of {len(rows)} such rows): {' for the teacher, '.join(told)} "
                    f"for the student; use a student with the tokenizer of {source.teacher.kind}:"
                    f"{source.teacher.name}, and max_length="
                    f"{source.teacher.settings.get('max_length')}"
                )

    def fetch_ahead(self, job: DistillJob, aligners_first: Collection[str]) -> ToCome | None:
        """Start downloading what the run needs from caches at URLs; None if all are local.
        `aligners_first` are sources that an aligner reads before the student.

        Raises CacheError if that is more than a mirror may keep."""
        found, own_draws = [], dict(zip(self.of_texts, self._own_draws(), strict=True))
        for name, source in self.sources.items():
            train, own_draw = self.train.cache_rows[name], own_draws.get(name, "")
            rows = [rows_by_first_use(job, source, train, name in aligners_first, own_draw)]
            if self.validation is not None and name in self.validation.cache_rows:
                rows.append(self.validation.cache_rows[name])
            elif name in self.measured.sources:
                held_out = self.measured.sources[name].rows
                rows.append(held_out[held_out >= 0])
            found.append(source.fetch_ahead(np.concatenate(rows)))
        return sum_to_come(found)

    def _own_draws(self) -> list[str]:
        """Seeds for the noise and shuffling of each further source; none for the first."""
        return ["" if number == 0 else name for number, name in enumerate(self.of_texts)]

    def without(self, left_out: Rows, problem: str) -> "StudentData":
        """The same without some training texts, each listed with its problem."""
        return replace(self, train=self.train.without(left_out, problem))


def read_labelled(
    keys: CorpusKeys, sources: tuple[str, ...], space: LabelSpace, columns: Sequence[str] = ()
) -> LabelledCorpus:
    """Files of examples whose labels are of a known space."""
    corpus = read_corpus_of(keys, sources, columns)
    return LabelledCorpus(corpus, label_values(corpus, space))


def read_corpus_of(
    keys: CorpusKeys, sources: tuple[str, ...], columns: Sequence[str] = (), weighted: bool = False
) -> Corpus:
    """The examples of some of a job's files; `columns` are those of texts, default the job's;
    `weighted`: with their weights, if the job has some."""
    return read_corpus(
        sources,
        columns or keys.text_column,
        label_column=keys.label_column,
        label_separator=keys.label_separator,
        id_column=keys.id_column,
        skip_bad_rows=keys.skip_bad_rows,
        limit=keys.limit,
        form=keys.file_format,
        several_chats=keys.rejected_column is not None,
        weight_column=keys.weight_column if weighted else None,
    )
