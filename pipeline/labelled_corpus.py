"""Examples of a job's files with their labels, and their rows in the caches of teachers."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache_schemas.errors import MissingKeysError
from ..cache_schemas.keys import example_key
from ..stages.corpus.corpus import Corpus, read_corpus
from ..stages.corpus.labels import (
    LabelSpace,
    LabelValues,
    count_missing,
    is_missing,
    label_values,
)
from ..stages.distill.batches import DistillDataset, Features
from ..stages.distill.tokens import Tokens, encode
from ..stages.store.format.rows import Rows
from ..stages.tokenizing.unknown import SAMPLE, mostly_unknown
from .distill_job import CorpusKeys
from .messages import LOGGER
from .sources import Source, missing_of_sources


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
        sources: Mapping[str, Source],
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
