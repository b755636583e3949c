"""Decoded predictions, and checks of predictions before they are written.

Shapes: N tokens, k entries or K samples of each.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.errors import TeacherOutputError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

ROUNDING = 1e-3
"""A log-probability may be above 0 by this; 16-bit arithmetic of a teacher comes close."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The most probable ids of N tokens, at one temperature; all log-probabilities are natural."""

    ids_Nk: Int32
    """Most probable first; 0 where an entry is absent."""
    log_probs_Nk: Float32
    """-inf where an entry is absent."""
    log_tail_N: Float32 | None
    """Log-mass of all other ids; -inf if there are none. None: left out, entries sum to 1."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Ids of N tokens drawn with replacement, ascending."""

    ids_NK: Int32
    log_probs_NK: Float32 | None
    """Log-probability of each sample, at its temperature; None if not kept."""


def refuse_log_probs(values: Floats, name: str) -> None:
    """Raises TeacherOutputError where a value is NaN or above 0 by more than rounding."""
    wrong = np.count_nonzero(~(values <= ROUNDING))
    if wrong:
        raise TeacherOutputError(
            f"{name}: {wrong} of {values.size} are NaN or above 0; "
            "run the teacher in another precision"
        )


def refuse_ids(ids: Integers, vocabulary: int) -> None:
    """Raises TeacherOutputError where an id is not one of the vocabulary."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocabulary):
        raise TeacherOutputError(
            f"ids: {ids.min()} to {ids.max()} are not all below the vocabulary of {vocabulary}; "
            "describe the coding by the number of the teacher's logits"
        )
