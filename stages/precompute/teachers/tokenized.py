"""Texts in, padded batches of token ids out: the same for every transformers teacher.

Shapes: B examples, T tokens. The padded length T of an example is its own number of tokens, at most
`max_length`, rounded up to a multiple of 16, at most what the model takes; so an example looks the
same to the model in any batch. Padding is on the right and masked, whatever side the tokenizer
would have chosen: then the positions of real tokens do not depend on it either. It is on the left
for a model that can be read only so (XLNet's classifier).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from ....cache_schemas.errors import TeacherOutputError
from ...pretrained import padding_id
from ...tokenizing.long_texts import shortened, shortened_pair, text_and_pair
from ...tokenizing.padding import pad_rows
from ...tokenizing.unknown import Unknown, mostly_unknown
from .base import Example, PrecisionOptions, TextOptions, in_row_groups

PAD_MULTIPLE = 16
"""Most padding an example can get, plus one; few lengths, so that batches fill up."""

TokenRow = dict[str, list[int]]
"""A tokenizer's outputs for one text: `input_ids`, `attention_mask` and so on, each [T]."""


class TokenizedOptions(PrecisionOptions, TextOptions):
    """Options of teachers that read tokens.

    With the default template an example of one segment is a text, of two a text and its pair, of
    more a text and, as its pair, the others joined by the separator token. Any other template
    makes one text of all segments. `lowercase` applies to the segments, not to the template.
    """

    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub id; none is the main branch"
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens per example, longer ones are truncated; default 128, or the "
        "model's maximum if that is less",
    )

    @property
    def prefix(self) -> str:
        """Prefix of every text, or of the first one of a pair."""
        return ""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """B examples as a model takes them.

    inputs: name -> [B, T] integers, `input_ids` and `attention_mask` (1 for real tokens) among
    them; truncated: bool [B]."""

    inputs: dict[str, torch.Tensor]
    truncated: npt.NDArray[np.bool_]

    def on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The inputs on the device; on a CPU with repeated rows behind the B."""
        return {name: in_row_groups(rows, device) for name, rows in self.inputs.items()}


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
        self._max_length = max_length
        self._positions, self._fixed = positions, fixed
        self.names = names & set(tokenizer.model_input_names)
        self._names = self.names | {"input_ids", "attention_mask"}
        self._vocabulary = vocabulary
        self.pad_id = padding_id(tokenizer, vocabulary)
        self._fills = {"input_ids": self.pad_id, "token_type_ids": tokenizer.pad_token_type_id}
        self.pad_left = False
        """For a model that reads the last position of a row."""

    @property
    def ends_with_padding(self) -> bool:
        """Whether texts end with the token that rows are filled up with."""
        return bool(self._rows(["a"], None)[0]["input_ids"][-1:] == [self.pad_id])

    def buckets(self, examples: Sequence[Example]) -> list[int]:
        """The padded length of each example, in tokens."""
        return [self._bucket(len(row["input_ids"])) for row in self._tokenize(examples)]

    def batch(self, examples: Sequence[Example], *, padded: bool = True) -> TokenBatch:
        """The examples as one batch, padded to the longest of their buckets, or of themselves.

        Raises TeacherOutputError for an example without a token."""
        rows = self._tokenize(examples)
        truncated = np.array([len(row["input_ids"]) > self._max_length for row in rows])
        for position in np.flatnonzero(truncated).tolist():
            rows[position] = self._cut(examples[position])
        self._check(rows, examples)
        longest = max(len(row["input_ids"]) for row in rows)
        width = self._bucket(longest) if padded or self._fixed else longest
        return TokenBatch(pad_rows(rows, self._fills, width=width, left=self.pad_left), truncated)

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """The share of unknown tokens in these texts, if it is most of them."""
        split = [self._text_and_pair(example.segments) for example in examples]
        return mostly_unknown(self._tokenizer, [text for pair in split for text in pair if text])

    def _bucket(self, tokens: int) -> int:
        if self._fixed:
            return self._positions
        kept = max(min(tokens, self._max_length), 1)
        return min(-(-kept // PAD_MULTIPLE) * PAD_MULTIPLE, self._positions)

    def _tokenize(self, examples: Sequence[Example]) -> list[TokenRow]:
        split = [self._text_and_pair(example.segments) for example in examples]
        rows: list[TokenRow] = [{}] * len(split)
        for paired in (False, True):  # two calls only where single texts and pairs meet in a batch
            places = [at for at, (_, pair) in enumerate(split) if (pair is not None) == paired]
            if places:
                texts = [split[at][0] for at in places]
                pairs = [split[at][1] for at in places] if paired else None
                for at, row in zip(places, self._rows(texts, pairs), strict=True):
                    rows[at] = row
        return rows

    def _rows(
        self, texts: list[str], pairs: Sequence[str | None] | None, **cut: object
    ) -> list[TokenRow]:
        encoded = self._tokenizer(texts, pairs, return_attention_mask=True, verbose=False, **cut)
        return [
            {name: encoded[name][at] for name in self._names if name in encoded}
            for at in range(len(texts))
        ]

    def _cut(self, example: Example) -> TokenRow:
        # The tokenizer cuts, not we: it keeps the special tokens and shortens the longer segment.
        text, pair = self._text_and_pair(example.segments)
        pairs = None if pair is None else [pair]
        return self._rows([text], pairs, truncation=True, max_length=self._max_length)[0]

    def _text_and_pair(self, segments: Sequence[str]) -> tuple[str, str | None]:
        options, tokenizer, most = self._options, self._tokenizer, self._max_length
        if len(segments) < 2 or options.template != "{text}":
            text = options.prefix + options.text(segments)
            return shortened(tokenizer, [text], most)[0], None
        lowered = [text.lower() if options.lowercase else text for text in segments]
        text, pair = text_and_pair(tokenizer, lowered)
        assert pair is not None
        return shortened_pair(tokenizer, options.prefix + text, pair, most)

    def _check(self, rows: list[TokenRow], examples: Sequence[Example]) -> None:
        for row, example in zip(rows, examples, strict=True):
            if not row["input_ids"]:
                raise TeacherOutputError(
                    f"text {example.segments!r:.80}: has no tokens; remove it from the corpus"
                )
            if max(row["input_ids"]) >= self._vocabulary:
                raise TeacherOutputError(
                    f"text {example.segments!r:.80}: token {max(row['input_ids'])} is beyond the "
                    f"model's vocabulary of {self._vocabulary}; the tokenizer is not the model's "
                    "own"
                )
