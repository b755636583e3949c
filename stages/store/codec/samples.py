"""Draws from the teacher's distribution: the law of the bytes, writing and reading.

K ids are drawn with replacement (Anshumann et al. 2025, arXiv 2503.16870): counts are repetitions,
and the mean over samples estimates any mean over the vocabulary without bias. A row is, in order,

- the byte columns of the low bits of the ids, ascending, below `vocabulary` (`bits.py`),
- the bit section: bit planes of the low bits, then the high bits,
- with `log_prob_bits=16`, the log-probability of each draw, in the order of the ids: an unsigned
  little-endian 16-bit number c means -c / 1024 nat; below -65535 / 1024 it is that.

12 samples of 128,256 ids take 23 bytes. Shapes: N tokens, K samples, W bytes of a row.
"""

import numpy as np
import numpy.typing as npt

from ....cache_schemas.codings import SamplesCoding
from ....cache_schemas.errors import DamagedCacheError
from .answers import Float32, Floats, Integers, Samples, refuse_ids, refuse_log_probs
from .bits import UInt8, blocks, joined_sorted, packed, split_sorted, unpacked

STEPS_PER_NAT = 1024
MOST_STEPS = 2**16 - 1


def encode_samples(coding: SamplesCoding, ids_NK: Integers, log_probs_NK: Floats | None) -> UInt8:
    """Rows [N, W] of samples in any order; log-probabilities where the coding keeps them.

    Raises TeacherOutputError for NaN, for what is above 0, and for ids not of the vocabulary."""
    assert ids_NK.shape == (len(ids_NK), coding.samples)
    assert (log_probs_NK is None) == (coding.log_prob_bits == 0)
    refuse_ids(ids_NK, coding.vocab_size)
    if log_probs_NK is None:
        return _encoded_ids(coding, np.sort(ids_NK, axis=1))
    assert log_probs_NK.shape == ids_NK.shape
    refuse_log_probs(log_probs_NK, "log-probabilities of samples")
    order_NK = np.argsort(ids_NK, axis=1, kind="stable")
    rows_NW = _encoded_ids(coding, np.take_along_axis(ids_NK, order_NK, axis=1))
    codes_NK = _codes(np.take_along_axis(log_probs_NK, order_NK, axis=1))
    return np.concatenate([rows_NW, codes_NK.view(np.uint8)], axis=1)


def _codes(log_probs_NK: Floats) -> npt.NDArray[np.uint16]:
    # Bounded before it is cast: the lowest number of a longer type is not one of a shorter.
    within_NK = np.maximum(log_probs_NK, -2 * MOST_STEPS / STEPS_PER_NAT).astype(np.float32)
    codes_NK: npt.NDArray[np.uint16] = np.clip(
        np.rint(within_NK * -STEPS_PER_NAT), 0, MOST_STEPS
    ).astype("<u2")
    return codes_NK


def _encoded_ids(coding: SamplesCoding, sorted_NK: Integers) -> UInt8:
    rows = [
        np.concatenate([*columns, packed(bits)], axis=1)
        for part in blocks(len(sorted_NK), coding.samples)
        for columns, bits in [split_sorted(sorted_NK[part], coding.ids)]
    ]
    return np.concatenate(rows) if rows else np.empty((0, coding.ids_bytes), np.uint8)


def decode_samples(coding: SamplesCoding, rows_NW: UInt8) -> Samples:
    """Decoded rows. Raises DamagedCacheError for invalid bytes; ids are below the vocabulary
    whatever the bytes are."""
    assert rows_NW.shape[1:] == (coding.row_bytes,)
    ids_NK = np.empty((len(rows_NW), coding.samples), np.int32)
    columns = coding.samples * (coding.ids.low_bits // 8)
    for part in blocks(len(rows_NW), coding.samples):
        bits_NB = unpacked(rows_NW[part, columns : coding.ids_bytes])
        numbers_NK = joined_sorted(rows_NW[part, :columns], bits_NB, coding.ids)
        if numbers_NK.size and numbers_NK[:, -1].max() >= coding.vocab_size:
            raise DamagedCacheError(f"id {numbers_NK.max()} of a vocabulary of {coding.vocab_size}")
        ids_NK[part] = numbers_NK
    return Samples(ids_NK, _log_probs(rows_NW[:, coding.ids_bytes :]))


def _log_probs(codes_NB: UInt8) -> Float32 | None:
    if not codes_NB.shape[1]:
        return None
    codes_NK = np.ascontiguousarray(codes_NB).view("<u2")
    # Subtracted from 0 rather than negated: there is no -0.0.
    return np.float32(0) - codes_NK.astype(np.float32) / np.float32(STEPS_PER_NAT)
