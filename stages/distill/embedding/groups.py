"""Examples of several texts, each of which is embedded by itself: a query and its candidates.

A row has C texts: a single one; a query and a passage that answers it; or further passages behind,
some of which may be absent. A text that comes in many rows is tokenized once, and its feature is
looked up once. A query may be read with another prompt than a passage, and is then another text to
the student, but not to a teacher's cache, whose keys are of the bare text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...corpus.corpus import Corpus
from ...embeddings.prompts import PassageTower, Prompts
from ...language.masks import needs_mask
from ..order import Indices
from ..tokens import Tokens, encode

Places = npt.NDArray[np.int64]
"""Numbers of texts, or of pairs, of each example [N, C]; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class TextGroups:
    """N examples of C texts each, and the T different texts that these are."""

    texts: Corpus
    """T rows of one segment."""
    queries: npt.NDArray[np.bool_]
    """Which of them [T] are read as queries."""
    places: Places
    """The texts of each example [N, C]: the query or only text first."""
    words: npt.NDArray[np.int64]
    """A number for the bare text of each of them [T]: the same behind another prompt."""

    @classmethod
    def of(cls, corpus: Corpus, apart: bool) -> "TextGroups":
        """The texts of all columns; `apart`: whether those of the first are queries, and others
        even where a passage has the same words. Without that all are passages."""
        count = len(corpus.segments)
        first, rest = (0,), tuple(range(1, count))
        columns = [own for own in (first, rest) if own] if apart else [tuple(range(count))]
        found, rows, queries = [], [], []
        places = np.full((len(corpus), count), -1)
        start = 0
        for own in columns:
            texts, where, numbers = _different(corpus, own)
            places[:, own] = np.where(numbers < 0, -1, numbers + start)
            start += len(texts)
            found.append(texts)
            rows.append(where)
            queries.append(np.full(len(texts), apart and own == first))
        first_rows = np.concatenate(rows)
        texts = Corpus(
            sources=corpus.sources,
            files=corpus.files,
            segments=(pa.concat_arrays(found),),
            ids=None if corpus.ids is None else corpus.ids.take(pa.array(first_rows)),
            labels=None,
            source_of_row=corpus.source_of_row[first_rows],
            number_of_row=corpus.number_of_row[first_rows],
            skipped=(),
        )
        words = texts.segments[0].dictionary_encode().indices.to_numpy(zero_copy_only=False)
        return cls(texts, np.concatenate(queries), places, words.astype(np.int64))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def columns(self) -> int:
        """C, the texts of an example at most."""
        return int(self.places.shape[1])

    @property
    def absent(self) -> int:
        """Number of texts that examples lack."""
        return int((self.places < 0).sum())

    def prompted(self, prompts: Prompts) -> Iterator[list[tuple[str, ...]]]:
        """All texts in order, each behind its prompt, in lists."""
        start = 0
        for batch in self.texts.batches():
            queries = self.queries[start : start + len(batch)]
            start += len(batch)
            yield [
                (f"{prompts.query_prompt if query else prompts.passage_prompt}{text}",)
                for (text,), query in zip(batch, queries.tolist(), strict=True)
            ]


def _different(
    corpus: Corpus, columns: Sequence[int]
) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The different texts of some columns, by their first use; the row of each; and for each row
    and column [N, columns] the number of its text, -1 where it is blank."""
    joined = pa.concat_arrays([corpus.segments[column] for column in columns])
    encoded = joined.dictionary_encode()
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(encoded.dictionary)), 0)
    words = ~blank.to_numpy(zero_copy_only=False)
    numbers = np.where(words, np.cumsum(words) - 1, -1)
    codes = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    null = encoded.indices.is_null().to_numpy(zero_copy_only=False)
    every = np.where(null, -1, numbers[codes])
    _, first = np.unique(every, return_index=True)
    first = first[1:] if (every < 0).any() else first
    texts = encoded.dictionary.filter(pa.array(words))
    return texts, first % len(corpus), every.reshape(len(columns), len(corpus)).T


@dataclass(frozen=True, slots=True)
class GroupTokens:
    """The tokens of examples: those of their texts."""

    texts: Tokens
    """Tokens of the T different texts; where passages have a tower of their own, of the queries
    alone, which are the first of all texts."""
    places: Places
    words: npt.NDArray[np.int64]
    """A number for the bare text of each."""
    tower: PassageTower = "shared"
    passages: Tokens | None = None
    """Tokens of the passages, the other texts, if a tower of their own reads them."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def all_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each of the T texts; 0 of one that is not read."""
        lengths = np.diff(self.texts.offsets)
        if self.passages is not None:
            return np.append(lengths, np.diff(self.passages.offsets))
        return np.pad(lengths, (0, len(self.words) - len(lengths)))

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Sums of the examples' tokens, from 0."""
        lengths = np.append(self.all_lengths, 0)
        return np.append(0, np.cumsum(lengths[self.places].sum(axis=1)))

    @property
    def truncated(self) -> int:
        """Number of truncated texts."""
        return self.texts.truncated + (0 if self.passages is None else self.passages.truncated)

    def pad(self, examples: Indices) -> dict[str, Any]:
        """The texts of some examples that are there, row by row: [P, width]. Where passages have a
        tower of their own, the queries, and the passages as `passages`."""
        chosen = self.places[examples]
        if self.tower == "shared":
            return {**self.texts.pad(chosen[chosen >= 0])}
        found: dict[str, Any] = {**self.texts.pad(chosen[:, 0])}
        if self.passages is not None and chosen.shape[1] > 1:
            rest = chosen[:, 1:]
            own = self.passages.pad(rest[rest >= 0] - len(self.texts))
            own_lengths = self.lengths_of(rest)
            found["passages"] = own | {"masked": needs_mask(own), "lengths": own_lengths}
        return found

    def words_of(self, examples: Indices) -> Places:
        """Numbers of the bare texts of some examples [B, C], -1 where there is none."""
        chosen = self.places[examples]
        return np.where(chosen < 0, -1, self.words[chosen])

    def lengths(self, examples: Indices) -> npt.NDArray[np.int64]:
        """Tokens of each of the texts that `pad` has in the first place [P]."""
        chosen = self.places[examples]
        return self.lengths_of(chosen if self.tower == "shared" else chosen[:, 0])

    def lengths_of(self, texts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tokens of some texts; numbers of -1 are left out."""
        found: npt.NDArray[np.int64] = self.all_lengths[texts[texts >= 0]]
        return found


Side = tuple[Any, int]
"""A tower's tokenizer, and the most tokens that it reads of a text."""


def encode_texts(
    side: Side,
    groups: TextGroups,
    prompts: Prompts,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> Tokens:
    """The tokens of all texts, or of those that are `chosen` [T], each behind its prompt."""
    examples = [text for batch in groups.prompted(prompts) for text in batch]
    if chosen is not None:
        examples = [text for text, read in zip(examples, chosen.tolist(), strict=True) if read]
    return encode(side[0], examples, side[1])
