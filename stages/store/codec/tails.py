"""The mass outside of the kept ids, as 16-bit numbers.

What is rounded is the log of the odds t / (1 - t) of the tail's mass t, in steps of 1/1024: where
nearly all mass is tail, the little that is not (1 - t) is as exact as t is where there is hardly
any. A log of t alone would call a tail of 0.9999 all, and entries would have no mass left.
"""

import numpy as np
import numpy.typing as npt

from .answers import Floats
from .bits import UInt8

STEPS_PER_NAT = 1024
NO_TAIL = 0
EVEN_ODDS = 2**15
ALL_TAIL = 2**16 - 1
LEAST_LOG_TAIL = (1 - EVEN_ODDS) / STEPS_PER_NAT
"""Of the least tail that is more than none."""


def encode_tails(log_tails_NT: Floats, empty_N: npt.NDArray[np.bool_]) -> UInt8:
    """Bytes [N, 2T]; `empty_N` says which tokens have no entry, so that all is tail."""
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
