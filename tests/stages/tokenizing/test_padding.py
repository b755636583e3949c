"""Rectangles of tokens against what a tokenizer itself pads."""

from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.tokenizing.padding import pad, pad_rows
from transformers import BertTokenizer

ROWS = [[5, 6, 7], [8], [], [9, 10, 11, 12], [0, 0]]
SEGMENTS = [[0, 0, 1], [0], [], [1, 1, 1, 1], [0, 1]]


def by_the_tokenizer(side: str, width: int | None) -> Any:
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3})
    tokenizer.padding_side, tokenizer.pad_token = side, "b"
    rows = {"input_ids": ROWS, "token_type_ids": SEGMENTS}
    padding = True if width is None else "max_length"
    return tokenizer.pad(rows, padding=padding, max_length=width, return_tensors="pt")


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("width", [None, 4, 7])
def test_rows_are_padded_as_a_tokenizer_does(left: bool, width: int | None) -> None:
    """Stored end to end, or row by row."""
    asked = by_the_tokenizer("left" if left else "right", width)
    columns = {
        "input_ids": np.array([each for row in ROWS for each in row], np.int32),
        "token_type_ids": np.array([each for row in SEGMENTS for each in row], np.uint8),
    }
    lengths = np.array([len(row) for row in ROWS])
    rows = [
        {"input_ids": ids, "token_type_ids": segments, "attention_mask": [1] * len(ids)}
        for ids, segments in zip(ROWS, SEGMENTS, strict=True)
    ]
    for batch in (
        pad(columns, lengths, {"input_ids": 3}, width=width, left=left),
        pad_rows(rows, {"input_ids": 3}, width=width, left=left),
    ):
        assert batch.keys() == asked.keys()
        for name, each in batch.items():
            assert each.dtype == torch.int64
            assert torch.equal(each, asked[name]), name


def test_a_row_wider_than_the_rectangle_is_no_batch() -> None:
    with pytest.raises(ValueError, match="4"):
        pad({"input_ids": np.arange(4)}, np.array([4]), {}, width=3)
