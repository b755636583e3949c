"""Text segments become token ids, once per run, kept as ragged arrays.

In: a tokenizer, examples of one or more segments. Out: `Tokens`, whose `pad` makes a batch that is
as wide as its longest example. One segment is encoded alone, several as a text and its pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...cache_schemas.errors import StudentSourceError
from ..pretrained import (
    DEFAULT_MAX_LENGTH,
    choose_length,
    least_length,
    padding_id,
    token_limit,
)
from ..ragged import positions_of
from ..tokenizing.long_texts import shortened, shortened_pair, text_and_pair
from ..tokenizing.padding import pad

_ENCODE_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of N examples, laid end to end; example i is `offsets[i]:offsets[i + 1]`."""

    values: Mapping[str, npt.NDArray[np.int32]]
    offsets: npt.NDArray[np.int64]
    pads: Mapping[str, int]
    truncated: int
    pad_left: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pad(self, examples: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """A batch of the given examples: each value and `attention_mask`, int64 [B, T]."""
        chosen = positions_of(examples, self.offsets)
        lengths = self.offsets[examples + 1] - self.offsets[examples]
        columns = {name: flat[chosen] for name, flat in self.values.items()}
        return pad(columns, lengths, self.pads, left=self.pad_left)


def encode(tokenizer: Any, examples: Sequence[tuple[str, ...]], max_length: int) -> Tokens:
    """Encode examples to at most `max_length` tokens each; counts those that were longer."""
    parts, lengths, truncated = [], [0], 0
    for start in range(0, len(examples), _ENCODE_ROWS):
        rows, cut = _encode(tokenizer, examples[start : start + _ENCODE_ROWS], max_length)
        parts.append({name: np.concatenate(column) for name, column in rows.items()})
        lengths.extend(len(ids) for ids in rows["input_ids"])
        truncated += cut
    return Tokens(
        values={name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        offsets=np.cumsum(lengths, dtype=np.int64),
        pads={"input_ids": padding_id(tokenizer), "token_type_ids": 0},
        truncated=truncated,
        pad_left=tokenizer.padding_side == "left",
    )


def _encode(
    tokenizer: Any, examples: Sequence[tuple[str, ...]], max_length: int
) -> tuple[dict[str, list[npt.NDArray[np.int32]]], int]:
    """Name -> one array per example, and the number of truncated examples."""
    pairs = [_text_and_pair(tokenizer, segments, max_length) for segments in examples]
    whole = _tokenize(tokenizer, pairs)
    long = [index for index, ids in enumerate(whole["input_ids"]) if len(ids) > max_length]
    if long:
        # The tokenizer cuts, not we: it keeps the special tokens and shortens the longer segment.
        chosen = [pairs[index] for index in long]
        for name, rows in _tokenize(
            tokenizer, chosen, truncation=True, max_length=max_length
        ).items():
            for index, row in zip(long, rows, strict=True):
                whole[name][index] = row
    columns = {
        name: [np.asarray(row, dtype=np.int32) for row in rows] for name, rows in whole.items()
    }
    return columns, len(long)


def _tokenize(
    tokenizer: Any, split: Sequence[tuple[str, str | None]], **cut: Any
) -> dict[str, list[list[int]]]:
    first, second = zip(*split, strict=True)
    pairs = None if second[0] is None else list(second)
    encoded = tokenizer(list(first), pairs, add_special_tokens=True, verbose=False, **cut)
    return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}


def _text_and_pair(
    tokenizer: Any, segments: Sequence[str], max_length: int
) -> tuple[str, str | None]:
    """A text and its pair, if it has one; without the part far beyond the last token."""
    text, pair = text_and_pair(tokenizer, segments)
    if pair is None:
        return shortened(tokenizer, [text], max_length)[0], None
    return shortened_pair(tokenizer, text, pair, max_length)


def choose_max_length(
    requested: int | None, tokenizer: Any, backbone: Any, default: int = DEFAULT_MAX_LENGTH
) -> int:
    """The most tokens of an example: as requested, or the default, or the student's maximum if
    less. Raises StudentSourceError for more than the student's maximum, or too few for text."""
    limit = token_limit(tokenizer, backbone)
    least = least_length(tokenizer)
    return choose_length(requested, limit, default, least, StudentSourceError)
