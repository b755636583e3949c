"""Positions of two tokenisations of one text that have read the same characters.

A position that has read the text up to character c predicts what starts at c. Two positions of two
tokenizers are a pair if both have read up to the same c and neither is inside of a character there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Positions that predict from the same character on: `student_N[i]` and `teacher_N[i]`,
    ascending."""

    student_N: Ints
    teacher_N: Ints


def aligned(student_offsets_S2: Ints, teacher_offsets_T2: Ints) -> Pairs:
    """Pairs of positions of one text, from the (start, end) characters of each token.

    Offsets are as tokenizers of Hugging Face give them: of special tokens (0, 0), and of pieces of
    one character those of the character. Tokens may include spaces before them or leave them out.
    The last position of each predicts nothing and is in no pair; special tokens are in none either,
    but for the last one before the text.
    """
    student_positions, student_read = _boundaries(student_offsets_S2)
    teacher_positions, teacher_read = _boundaries(teacher_offsets_T2)
    _, of_student, of_teacher = np.intersect1d(
        student_read, teacher_read, assume_unique=True, return_indices=True
    )
    return Pairs(student_positions[of_student], teacher_positions[of_teacher])


def _boundaries(offsets_N2: Ints) -> tuple[Ints, Ints]:
    """The positions at which a whole number of characters has been read, and how many."""
    starts, ends = np.asarray(offsets_N2, dtype=np.int64).reshape(-1, 2).T
    reading = np.flatnonzero(ends > starts)
    before = reading[0] if len(reading) else 0
    # A piece of a character ends where the next piece, or all of it, begins later.
    whole = ends[reading[:-1]] <= starts[reading[1:]]
    positions = np.concatenate([[before - 1] if before else [], reading[:-1][whole], reading[-1:]])
    positions = positions.astype(np.int64)
    read = np.where(positions < before, 0, ends[positions])
    predicting = positions < len(starts) - 1
    return positions[predicting], read[predicting]
