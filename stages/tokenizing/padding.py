"""Rows of tokens of different lengths become rectangles: padded on the right, or on the left.

Shapes: B rows, S tokens of all rows, laid end to end; T, the width. No Python per row or token
where rows are stored end to end: 0.1 ms for two columns of 256 rows of up to 128 tokens.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]


def pad(
    columns: Mapping[str, npt.NDArray[Any]],
    lengths: Ints,
    fills: Mapping[str, int],
    *,
    width: int | None = None,
    left: bool = False,
) -> dict[str, torch.Tensor]:
    """Columns of whole numbers [S] (ids, segments, positions) as int64 [B, T], padding being
    `fills[name]`, or 0, and `attention_mask`: 1 for tokens, 0 for padding.

    `lengths` [B] are those of the rows, `width` is T: that of the longest row, unless given."""
    width = int(lengths.max()) if width is None else width
    position_T, lengths_B1 = np.arange(width), lengths[:, None]
    mask_BT = position_T >= width - lengths_B1 if left else position_T < lengths_B1
    batch = {name: np.full(mask_BT.shape, fills.get(name, 0), np.int64) for name in columns}
    for name, values in columns.items():
        batch[name][mask_BT] = values
    batch["attention_mask"] = mask_BT.astype(np.int64)
    return {name: torch.from_numpy(rows) for name, rows in batch.items()}


def pad_rows(
    rows: Sequence[Mapping[str, Sequence[int]]],
    fills: Mapping[str, int],
    *,
    width: int | None = None,
    left: bool = False,
) -> dict[str, torch.Tensor]:
    """As `pad`, for rows as a tokenizer returns them one by one: name -> its numbers, all alike."""
    lengths = np.array([len(row["input_ids"]) for row in rows])
    count = int(lengths.sum())
    columns = {
        name: np.fromiter(chain.from_iterable(row[name] for row in rows), np.int64, count)
        for name in rows[0]
        if name != "attention_mask"
    }
    return pad(columns, lengths, fills, width=width, left=left)
