"""Texts in, padded batches of token ids out: the same for every transformers teacher.

Shapes: B examples, T tokens. The padded length T of an example is its own number of tokens, at most
`max_length`, rounded up (`padded_lengths.py`), at most what the model takes; so an example looks
the same to the model in any batch. Padding is on the right and masked, whatever side the tokenizer
would have chosen: then the positions of real tokens do not depend on it either. It is on the left
for a model that can be read only so (XLNet's classifier).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.errors import TeacherOutputError
from ....cache_schemas.keys import IntArray
from ...language.prompt_templates import columns_of
from ...pretrained import padding_id
from ...ragged import arange_each, positions_of
from ...tokenizing.long_texts import shortened, shortened_pair, text_and_pair
from ...tokenizing.padding import pad
from ...tokenizing.unknown import Unknown, mostly_unknown
from .base import Example, in_row_groups
from .options import Padding, TokenizedOptions
from .padded_lengths import padded_lengths

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenRows:
    """The tokens of N texts, S in all, laid end to end.

    columns: name -> whole numbers [S], `input_ids` among them; lengths: [N]; truncated: bool [N],
    texts that had more tokens."""

    columns: dict[str, _Ints]
    lengths: _Ints
    truncated: npt.NDArray[np.bool_]

    @cached_property
    def _offsets(self) -> _Ints:
        offsets: _Ints = np.concatenate([[0], np.cumsum(self.lengths)])
        return offsets

    def take(self, rows: IntArray) -> "TokenRows":
        """Some of the texts, in the order of `rows` [B]."""
        positions = positions_of(rows, self._offsets)
        columns = {name: values[positions] for name, values in self.columns.items()}
        return TokenRows(columns, self.lengths[rows], self.truncated[rows])

    def positions(self, width: int) -> _Ints:
        """The index of each token [S] in rows of so many, padded on the right, end to end."""
        return np.repeat(np.arange(len(self.lengths)) * width, self.lengths) + arange_each(
            self.lengths
        )

    def parts(self, values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The values [S, *shape] of all tokens, those of each text."""
        return np.split(values, self._offsets[1:-1])


Inputs = dict[str, torch.Tensor]
"""Name -> [B, T] integers, `input_ids` and `attention_mask` (1 for real tokens) among them; on a
CPU with repeated rows behind the B (`in_row_groups`)."""


class TextTokenizer:
    """A model's tokenizer, with the model's limits."""

    def __init__(
        self,
        tokenizer: Any,
        options: TokenizedOptions,
        *,
        max_length: int,
        names: frozenset[str],
        vocabulary: int,
        positions: int,
        fixed: bool = False,
    ) -> None:
        """`max_length`: truncation length; `names`: arguments the model takes; `vocabulary`: its
        vocabulary size; `positions`: its maximum length; `fixed`: every text is padded to that
        length."""
        self._tokenizer = tokenizer
        self._options = options
        self.max_length = max_length
        self.positions, self._fixed = positions, fixed
        self.names = names & set(tokenizer.model_input_names)
        self._names = (self.names | {"input_ids"}) - {"attention_mask"}
        self._vocabulary = vocabulary
        self.pad_id = padding_id(tokenizer, vocabulary)
        self._fills = {"input_ids": self.pad_id, "token_type_ids": tokenizer.pad_token_type_id}
        self.pad_left = False
        """For a model that reads the last position of a row."""

    @property
    def ends_with_padding(self) -> bool:
        """Whether texts end with the token that rows are filled up with."""
        return bool(self._tokenize([("a", None)]).columns["input_ids"][-1:] == [self.pad_id])

    def buckets(self, lengths: IntArray, padding: Padding | None = None) -> IntArray:
        """The padded length of texts of so many tokens [N], by the rule of the options unless
        another is named."""
        if self._fixed:
            return np.full(len(lengths), self.positions)
        return padded_lengths(lengths, self.positions, padding or self._options.padding)

    def read(self, examples: Sequence[Example]) -> TokenRows:
        """The tokens of N examples, each at most `max_length`; tokenized once."""
        texts = [self._text_and_pair(example.segments) for example in examples]
        paired = np.array([pair is not None for _, pair in texts], dtype=bool)
        if paired.all() or not paired.any():
            return self._tokenize(texts)
        # Two calls where single texts and pairs meet.
        groups = [np.flatnonzero(paired == which) for which in (False, True)]
        parts = [self._tokenize([texts[row] for row in group.tolist()]) for group in groups]
        return _joined(parts).take(np.argsort(np.concatenate(groups)))

    def read_own(self, text: str) -> TokenRows:
        """The tokens of one example of our own, with this text in each column of the template."""
        columns = max(columns_of(self._options.template), 1)
        return self.read([Example(b"", (text,) * columns)])

    def inputs(
        self,
        rows: TokenRows,
        device: torch.device,
        *,
        padded: bool = True,
        padding: Padding | None = None,
    ) -> Inputs:
        """Texts as one batch on the device, padded to the longest of their buckets (by another rule
        if `padding` names one), or of themselves. Raises TeacherOutputError for a text without a
        token."""
        longest = rows.lengths.max(keepdims=True)
        width = int((self.buckets(longest, padding) if padded or self._fixed else longest)[0])
        batch = pad(rows.columns, rows.lengths, self._fills, width=width, left=self.pad_left)
        return {name: in_row_groups(values, device) for name, values in batch.items()}

    def needs_mask(self, rows: TokenRows) -> bool:
        """Whether a batch of these texts has padding."""
        longest = rows.lengths.max(keepdims=True)
        return bool((rows.lengths < self.buckets(longest)).any())

    def check(self, rows: TokenRows, examples: Sequence[Example]) -> None:
        """Raise TeacherOutputError for a text without a token, or with one that the model lacks."""
        if not rows.lengths.all():
            text = examples[int(np.argmin(rows.lengths))]
            raise TeacherOutputError(
                f"text {text.segments!r:.80}: has no tokens; remove it from the corpus"
            )
        ids = rows.columns["input_ids"]
        if ids.max() >= self._vocabulary:
            first = int(np.argmax(ids >= self._vocabulary))
            text = examples[int(np.searchsorted(np.cumsum(rows.lengths), first, side="right"))]
            raise TeacherOutputError(
                f"text {text.segments!r:.80}: token {ids[first]} is beyond the model's vocabulary "
                f"of {self._vocabulary}; the tokenizer is not the model's own"
            )

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """The share of unknown tokens in these texts, if it is most of them."""
        split = [self._text_and_pair(example.segments) for example in examples]
        return mostly_unknown(self._tokenizer, [text for pair in split for text in pair if text])

    def _tokenize(self, texts: Sequence[tuple[str, str | None]]) -> TokenRows:
        rows = self._rows(texts)
        truncated = rows.lengths > self.max_length
        if not truncated.any():
            return rows
        # The tokenizer cuts, not we: it keeps the special tokens and shortens the longer segment.
        longer = np.flatnonzero(truncated)
        cut = self._rows(
            [texts[row] for row in longer.tolist()], truncation=True, max_length=self.max_length
        )
        order = np.arange(len(texts))
        order[longer] = len(texts) + np.arange(len(longer))
        whole = _joined([rows, cut]).take(order)
        return replace(whole, truncated=truncated)

    def _rows(self, texts: Sequence[tuple[str, str | None]], **cut: object) -> TokenRows:
        first, second = zip(*texts, strict=True)
        pairs = None if second[0] is None else list(second)
        encoded = self._tokenizer(
            list(first), pairs, return_attention_mask=False, verbose=False, **cut
        )
        ids = encoded["input_ids"]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        total = int(lengths.sum())
        columns = {
            name: np.fromiter(chain.from_iterable(encoded[name]), np.int64, total)
            for name in self._names
            if name in encoded
        }
        return TokenRows(columns, lengths, np.zeros(len(ids), dtype=bool))

    def _text_and_pair(self, segments: Sequence[str]) -> tuple[str, str | None]:
        options, tokenizer, most = self._options, self._tokenizer, self.max_length
        if len(segments) < 2 or options.template != "{text}":
            text = options.prefix + options.text(segments)
            return shortened(tokenizer, [text], most)[0], None
        lowered = [text.lower() if options.lowercase else text for text in segments]
        text, pair = text_and_pair(tokenizer, lowered)
        assert pair is not None
        return shortened_pair(tokenizer, options.prefix + text, pair, most)


def _joined(parts: Sequence[TokenRows]) -> TokenRows:
    return TokenRows(
        {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns},
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.truncated for part in parts]),
    )
