"""Text segments become token ids, once per run, kept as ragged arrays.

In: a tokenizer, examples of one or more segments. Out: `Tokens`, whose `pad` makes a batch that is
as wide as its longest example. One segment is encoded alone; two as a pair; of more, all but the
first are joined by the tokenizer's separator into the second of the pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...cache_schemas.errors import StudentSourceError
from ..pretrained import token_limit

DEFAULT_MAX_LENGTH = 128
_ENCODE_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of N examples, laid end to end; example i is `offsets[i]:offsets[i + 1]`."""

    values: Mapping[str, npt.NDArray[np.int32]]
    offsets: npt.NDArray[np.int64]
    pads: Mapping[str, int]
    truncated: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pad(self, examples: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """A batch of the given examples: each value and `attention_mask`, int64 [B, T]."""
        starts = self.offsets[examples]
        lengths = self.offsets[examples + 1] - starts
        place_BT = np.arange(lengths.max())[None, :]
        mask_BT = place_BT < lengths[:, None]
        source_BT = np.where(mask_BT, starts[:, None] + place_BT, 0)
        batch = {
            name: torch.from_numpy(np.where(mask_BT, flat[source_BT], self.pads[name]).astype("i8"))
            for name, flat in self.values.items()
        }
        return batch | {"attention_mask": torch.from_numpy(mask_BT.astype("i8"))}


def encode(tokenizer: Any, examples: Sequence[tuple[str, ...]], max_length: int) -> Tokens:
    """Encode examples to at most `max_length` tokens each; counts those that were longer."""
    columns: dict[str, list[list[int]]] = {}
    for start in range(0, len(examples), _ENCODE_ROWS):
        encoded = _encode(tokenizer, examples[start : start + _ENCODE_ROWS], max_length)
        for name, rows in encoded.items():
            columns.setdefault(name, []).extend(rows)
    counted = columns.pop("truncated")
    lengths = [len(row) for row in columns["input_ids"]]
    return Tokens(
        values={
            name: np.fromiter((number for row in rows for number in row), dtype=np.int32)
            for name, rows in columns.items()
        },
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        pads={"input_ids": tokenizer.pad_token_id, "token_type_ids": 0},
        truncated=sum(row[0] for row in counted),
    )


def _encode(
    tokenizer: Any, examples: Sequence[tuple[str, ...]], max_length: int
) -> dict[str, list[list[int]]]:
    first = [segments[0] for segments in examples]
    pair = [_joined(tokenizer, segments[1:]) for segments in examples]
    texts = (first,) if len(examples[0]) == 1 else (first, pair)
    longest = tokenizer(*texts, add_special_tokens=True, truncation=False, verbose=False)
    cut = tokenizer(*texts, add_special_tokens=True, truncation=True, max_length=max_length)
    names = [name for name in ("input_ids", "token_type_ids") if name in cut]
    columns: dict[str, list[list[int]]] = {name: cut[name] for name in names}
    columns["truncated"] = [[int(len(ids) > max_length)] for ids in longest["input_ids"]]
    return columns


def _joined(tokenizer: Any, segments: Sequence[str]) -> str:
    separator = tokenizer.sep_token
    return (f" {separator} " if separator else "\n").join(segments)


def choose_max_length(asked: int | None, tokenizer: Any, backbone: Any) -> int:
    """The most tokens of an example: as asked, or 128, or what the student can take if less.

    Raises StudentSourceError if more is asked than the student can take, or too few for text."""
    limit = token_limit(tokenizer, backbone)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if asked is not None and asked < least:
        raise StudentSourceError(
            f"max_length {asked}: no text fits beside the special tokens; ask for at least {least}"
        )
    if asked is not None and asked > limit:
        raise StudentSourceError(
            f"max_length {asked}: the student takes {limit} tokens at most; ask for fewer"
        )
    return asked or min(DEFAULT_MAX_LENGTH, limit)
