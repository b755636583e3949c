"""The most probable ids with their log-probabilities and the tail: law of the bytes, and code.

A row of `TopKCoding` is, in order,

1. where `bits` is below 16: the range R, one byte, in quarters of a nat;
2. for each temperature T of `temperatures`, the mass t of softmax(logits / T) outside of the k
   ids, as c = 32768 + 1024 log(t / (1 - t)), rounded and kept within 1 .. 65534: an unsigned
   little-endian 16-bit number. 0 means t = 0 (k is the whole vocabulary), 65535 that all is tail;
3. the byte columns of the ids, ceil(log2 vocabulary) bits each, most probable first (`bits.py`);
4. the byte columns of the low bits of the levels (`bits.py`);
5. the bit section: planes of the ids, planes of the levels' low bits, the levels' high bits.

The i-th level is how far the i-th log-probability lies below the first: r_i = -level_i * step,
where step is R / (2^bits - 2) nat, or 1/1024 nat if `bits` is 16. The first level is 0 and levels
do not go down, so they take Elias-Fano's bits: 26.6 bytes instead of 50 for k = 50 at 8 bits. The
highest level, 2^bits - 1, is an absent entry: fewer than k ids were given, or the probability is 0
or lies more than 63.75 nat (16 bits: 65534 / 1024) below the first. Absent entries have id 0, and
what they had of the mass is tail.

At temperature T, with t the tail's mass at T, entry i has the log-probability

    r_i / T - log sum_j exp(r_j / T) + log(1 - t) - 2^-20

The tail decides what all entries sum to, so rounded levels lose no mass. The last term is a margin
for the rounding of 32-bit numbers: entries and tail never sum to more than 1, and to less by at
most 2^-18.

A tail is rounded by the log of its odds t / (1 - t), in steps of 1/1024: where nearly all mass is
tail, the little that is not (1 - t) is as exact as t is where there is hardly any. A log of t alone
would call a tail of 0.9999 all, and entries would have no mass left.

Shapes: N tokens, k entries, T temperatures, W bytes of a row.
"""

import numpy as np
import numpy.typing as npt

from ....cache_schemas.codings import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    RANGE_BYTES,
    TAIL_BYTES,
    TopKCoding,
    id_bits,
)
from ....cache_schemas.errors import CacheError, DamagedCacheError, TeacherOutputError
from .answers import Float32, Floats, Int32, Integers, TopK, refuse_ids, refuse_log_probs
from .bits import (
    UInt8,
    UInt32,
    blocks,
    joined,
    joined_sorted,
    packed,
    split,
    split_sorted,
    unpacked,
)

STEPS_PER_NAT = 1024
NO_TAIL = 0
EVEN_ODDS = 2**15
ALL_TAIL = 2**16 - 1
LEAST_LOG_TAIL = (1 - EVEN_ODDS) / STEPS_PER_NAT
"""Log-mass of the smallest non-zero tail."""


def encode_tails(log_tails_NT: Floats, empty_N: npt.NDArray[np.bool_]) -> UInt8:
    """Bytes [N, 2T]; `empty_N` marks tokens without entries, which are all tail."""
    tails_NT = np.minimum(log_tails_NT, 0).astype(np.float64)
    with np.errstate(divide="ignore"):
        log_odds_NT = tails_NT - np.log(-np.expm1(tails_NT))
    codes_NT = np.rint(log_odds_NT * STEPS_PER_NAT) + EVEN_ODDS
    codes_NT = np.clip(codes_NT, NO_TAIL + 1, ALL_TAIL - 1)
    codes_NT[tails_NT == -np.inf] = NO_TAIL
    codes_NT[empty_N] = ALL_TAIL
    codes: UInt8 = codes_NT.astype("<u2").view(np.uint8)
    return codes


def decode_tails(codes_N2: UInt8) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """log t and log (1 - t) [N] of two bytes each."""
    codes_N = np.ascontiguousarray(codes_N2).view("<u2")[:, 0]
    log_odds_N = (codes_N.astype(np.float64) - EVEN_ODDS) / STEPS_PER_NAT
    log_odds_N[codes_N == NO_TAIL] = -np.inf
    log_odds_N[codes_N == ALL_TAIL] = np.inf
    # Subtracted from 0 rather than negated: there is no -0.0.
    return 0.0 - np.logaddexp(0.0, -log_odds_N), 0.0 - np.logaddexp(0.0, log_odds_N)


RANGES_PER_NAT = 4
MARGIN = 2.0**-20


def encode_top_k(
    coding: TopKCoding, ids_Nk: Integers, log_probs_Nk: Floats, log_tails_NT: Floats
) -> UInt8:
    """Rows [N, W]. Log-probabilities are at temperature 1, do not ascend, and are -inf for absent
    entries, whose ids mean nothing; only their differences are kept. Tails stand in the order of
    `coding.temperatures`.

    Raises TeacherOutputError for NaN, for what is above 0, for ids that are not of the vocabulary,
    and for a token without any probability."""
    shape = (len(ids_Nk), coding.k)
    assert ids_Nk.shape == log_probs_Nk.shape == shape
    assert log_tails_NT.shape == (len(ids_Nk), len(coding.temperatures))
    refuse_log_probs(log_probs_Nk, "log-probabilities")
    refuse_log_probs(log_tails_NT, "log of the tail's mass")
    assert not (log_probs_Nk[:, 1:] > log_probs_Nk[:, :-1]).any(), "most probable first"
    rows_NW = np.empty((len(ids_Nk), coding.row_bytes), np.uint8)
    for part in blocks(len(ids_Nk), coding.k):
        rows_NW[part] = _encoded(coding, ids_Nk[part], log_probs_Nk[part], log_tails_NT[part])
    return rows_NW


def _encoded(
    coding: TopKCoding, ids_Nk: Integers, log_probs_Nk: Floats, log_tails_NT: Floats
) -> UInt8:
    levels_Nk, header = _levels(coding, log_probs_Nk)
    absent_Nk = levels_Nk == coding.levels.universe - 1
    empty_N = absent_Nk[:, 0]
    if (empty_N[:, None] & (log_tails_NT == -np.inf)).any():
        raise TeacherOutputError("a token without any probability; look at the teacher's logits")
    present_Nk = np.where(absent_Nk, 0, ids_Nk)
    refuse_ids(present_Nk, coding.vocab_size)
    id_columns, id_planes = split(present_Nk, id_bits(coding.vocab_size))
    level_columns, level_bits = split_sorted(levels_Nk, coding.levels)
    # If probable ids were cut off, some mass is in the tail.
    cut_N1 = (absent_Nk & (log_probs_Nk > -np.inf)).any(axis=1, keepdims=True)
    least_N1 = np.where(cut_N1, LEAST_LOG_TAIL, -np.inf)
    header.append(encode_tails(np.maximum(log_tails_NT, least_N1), empty_N))
    section = packed([*id_planes, *level_bits])
    return np.concatenate([*header, *id_columns, *level_columns, section], axis=1)


@np.errstate(over="ignore")  # what is too far below for a number is infinitely far: absent
def _levels(coding: TopKCoding, log_probs_Nk: Floats) -> tuple[UInt32, list[UInt8]]:
    """Levels, and the ranges [N, 1] where the coding has them."""
    highest = coding.levels.universe - 2
    log_probs_Nk = log_probs_Nk.astype(np.float32, copy=False)
    first_N1 = log_probs_Nk[:, :1]
    below_Nk = np.where(first_N1 == -np.inf, np.inf, first_N1) - log_probs_Nk
    if coding.bits == 16:
        steps_Nk = np.rint(below_Nk * np.float32(STEPS_PER_NAT))
        return np.minimum(steps_Nk, highest + 1).astype(np.uint32), []
    quarters_Nk = below_Nk * np.float32(RANGES_PER_NAT)
    present_Nk = quarters_Nk <= np.iinfo(np.uint8).max
    ranges_N1 = np.ceil(quarters_Nk.max(axis=1, keepdims=True, initial=0, where=present_Nk))
    levels_Nk = np.rint(quarters_Nk * (highest / np.maximum(ranges_N1, 1)))
    levels_Nk[~present_Nk] = highest + 1
    return levels_Nk.astype(np.uint32), [ranges_N1.astype(np.uint8)]


def decode_top_k(
    coding: TopKCoding, rows_NW: UInt8, temperature: float = 1.0, *, renormalised: bool = False
) -> TopK:
    """Decoded rows at a temperature: one of the coding's, or any if `renormalised`, which leaves
    the tail out: the entries of a token sum to 1. A quiet core of 2.6 GHz takes 0.65 microseconds a
    token for k = 50 and 1.3 for k = 128, and half as much again where the heap is in pieces.

    Raises CacheError for another temperature, and DamagedCacheError for bytes that no encoder
    wrote; ids are below the vocabulary whatever the bytes are."""
    assert rows_NW.shape[1:] == (coding.row_bytes,)
    tail_bytes = _tail_bytes(coding, temperature, renormalised)
    ids_Nk = np.empty((len(rows_NW), coding.k), np.int32)
    log_probs_Nk = np.empty((len(rows_NW), coding.k), np.float32)
    log_tail_N = np.empty(len(rows_NW), np.float32)
    log_share_N: npt.NDArray[np.float64] | float = 0.0
    for part in blocks(len(rows_NW), coding.k):
        if tail_bytes:
            log_tail_N[part], log_share_N = decode_tails(rows_NW[part, tail_bytes])
        _decode_entries(coding, rows_NW[part], temperature, ids_Nk[part], log_probs_Nk[part])
        _normalise(log_probs_Nk[part], log_share_N)
    return TopK(ids_Nk, log_probs_Nk, log_tail_N if tail_bytes else None)


def _tail_bytes(coding: TopKCoding, temperature: float, renormalised: bool) -> slice | None:
    """Position of the tail at a temperature in a row; None if none is needed."""
    if renormalised:
        if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise CacheError(
                f"temperature: {temperature} is not within {MIN_TEMPERATURE} and "
                f"{MAX_TEMPERATURE}; choose another"
            )
        return None
    if temperature not in coding.temperatures:
        known = ", ".join(map(str, coding.temperatures))
        raise CacheError(
            f"temperature: the mass outside of the {coding.k} ids is not known at {temperature}, "
            f"only at {known}; choose one of them, or renormalise over the ids"
        )
    first = coding.header_bytes - TAIL_BYTES * len(coding.temperatures)
    start = first + TAIL_BYTES * coding.temperatures.index(temperature)
    return slice(start, start + TAIL_BYTES)


def _decode_entries(
    coding: TopKCoding, rows_NW: UInt8, temperature: float, ids_Nk: Int32, relative_Nk: Float32
) -> None:
    """Fills in ids, and log-probabilities relative to the first at the temperature."""
    absent = coding.levels.universe - 1
    ids, levels_Nk = _numbers(coding, rows_NW)
    steps_N1 = (_steps(coding, rows_NW) / -temperature).astype(np.float32)
    ids_Nk[:] = ids
    np.multiply(levels_Nk, steps_N1, out=relative_Nk, dtype=np.float32)
    if (levels_Nk[:, -1] == absent).any():
        absent_Nk = levels_Nk == absent
        ids_Nk[absent_Nk] = 0
        relative_Nk[absent_Nk] = -np.inf


def _numbers(coding: TopKCoding, rows_NW: UInt8) -> tuple[UInt32, UInt32]:
    """Ids and levels, both checked."""
    width, law, k = id_bits(coding.vocab_size), coding.levels, coding.k
    ids_end = coding.header_bytes + k * (width // 8)
    columns_end = ids_end + k * (law.low_bits // 8)
    bits_NB = unpacked(rows_NW[:, columns_end:])
    planes = k * (width % 8)
    ids_Nk = joined(rows_NW[:, coding.header_bytes : ids_end], bits_NB[:, :planes], k)
    levels_Nk = joined_sorted(rows_NW[:, ids_end:columns_end], bits_NB[:, planes:], law)
    if ids_Nk.size and ids_Nk.max() >= coding.vocab_size:
        raise DamagedCacheError(f"id {ids_Nk.max()} of a vocabulary of {coding.vocab_size}")
    if ((levels_Nk[:, 0] != 0) & (levels_Nk[:, 0] != law.universe - 1)).any():
        raise DamagedCacheError("a token's first log-probability lies below the first")
    return ids_Nk, levels_Nk


def _steps(coding: TopKCoding, rows_NW: UInt8) -> npt.NDArray[np.float64]:
    """Nats of one level, [N, 1]."""
    if coding.bits == 16:
        return np.full((len(rows_NW), 1), 1 / STEPS_PER_NAT)
    ranges_N1 = rows_NW[:, :RANGE_BYTES].astype(np.float64)
    return ranges_N1 / (RANGES_PER_NAT * (coding.levels.universe - 2))


def _normalise(log_probs_Nk: Float32, log_share_N: npt.NDArray[np.float64] | float) -> None:
    """Shifts relative log-probabilities so that a token's entries sum to its share of the mass."""
    # A token that has entries has one of exp(0); one that has none stays without.
    sums_N = np.maximum(np.exp(log_probs_Nk).sum(axis=1, dtype=np.float64), 1.0)
    exact_N = log_share_N - np.log(sums_N) - MARGIN
    shifts_N = exact_N.astype(np.float32)
    # Rounded up, all of a token's entries would be too high together.
    shifts_N = np.where(shifts_N > exact_N, np.nextafter(shifts_N, np.float32(-np.inf)), shifts_N)
    log_probs_Nk += shifts_N[:, None]
