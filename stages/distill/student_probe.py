"""A probe of whether a student's outputs depend on padding.

Not every family masks padding: FNet mixes all positions of a row, and with convolutions or
landmarks padding counts. Predictions of such a student depend on the batch.
"""

import logging
from typing import Any, Literal

import torch
from torch import Tensor

from ..language.probes import probing
from .language.student import LanguageStudent
from .student import Student

PROBE = "a b c d e"
"""A text of several tokens."""

TOLERANCE = 1e-3
"""Tolerance relative to the largest value, between two poolings of the same text: rounding."""

Side = Literal["left", "right"]

_PADDED = 3
_LOGGER = logging.getLogger(__name__)


def probe_inputs(tokenizer: Any) -> dict[str, Tensor]:
    """One text [1, T], as it is read alone."""
    ids = torch.tensor([tokenizer(PROBE)["input_ids"]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padding_effect(student: Student | LanguageStudent, tokenizer: Any, side: Side) -> float:
    """The largest difference that a few padding tokens make to a text's pooled vector, or, of a
    language model padded on the right, to the states of its tokens; as a part of the largest
    number."""
    inputs = probe_inputs(tokenizer)
    padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
    padded = {
        name: torch.cat(
            [rows, rows.new_full((1, _PADDED), padding[name])][:: 1 if side == "right" else -1], 1
        )
        for name, rows in inputs.items()
    }
    with probing(student), torch.random.fork_rng(devices=[]):
        alone, beside = (student(**each)[0] for each in (inputs, padded))
    beside = beside[: len(alone)]
    if alone.ndim == 3:  # of each token
        beside = beside[:, : alone.shape[1]]
    return float((beside - alone).abs().max() / alone.abs().max().clamp(min=1e-6))


def warn_of_padding(
    student: Student | LanguageStudent, tokenizer: Any, source: str, side: Side | None = None
) -> None:
    """Warn, once and in one line, of a student whose outputs depend on padding, on the tokenizer's
    side of a text if none is given."""
    if tokenizer.pad_token_id is None:
        return
    try:
        effect = padding_effect(student, tokenizer, side or tokenizer.padding_side)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # it takes no text of this length; training reports its limit
        return
    if effect > TOLERANCE:
        family = student.model.config.model_type
        _LOGGER.warning(
            f"student {source}: a {family} depends on padding (its outputs differ by "
            f"{effect:.1%} of the largest value), so predictions depend on the batch; predict one "
            "text at a time (batch_size=1), or use a family that masks padding"
        )
