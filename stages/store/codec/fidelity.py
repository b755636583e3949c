"""Error of predictions after writing and reading back."""

import numpy as np
import numpy.typing as npt

from ....cache_schemas.codings import Fidelity, SamplesCoding, TopKCoding
from .answers import Floats, Integers
from .bits import UInt8
from .samples import decode_samples
from .top_k import decode_top_k

Float64 = npt.NDArray[np.float64]


def measure_top_k(
    coding: TopKCoding,
    ids_Nk: Integers,
    log_probs_Nk: Floats,
    log_tails_NT: Floats,
    rows_NW: UInt8,
) -> Fidelity:
    """Errors of rows [N, W], N >= 1, against the input of `encode_top_k`, at temperature 1."""
    found = decode_top_k(coding, rows_NW)
    assert found.log_tail_N is not None
    kept_Nk = found.log_probs_Nk > -np.inf
    assert (found.ids_Nk == ids_Nk)[kept_Nk].all()
    given_Nk = log_probs_Nk.astype(np.float64)
    log_tail_N = log_tails_NT[:, coding.temperatures.index(1.0)].astype(np.float64)
    return Fidelity(
        tokens=len(rows_NW),
        bytes_per_token=coding.row_bytes,
        mean_tail=min(1.0, float(np.exp(log_tail_N).mean())),
        divergence=_divergence(
            np.column_stack([given_Nk, log_tail_N]),
            np.column_stack([found.log_probs_Nk, found.log_tail_N]).astype(np.float64),
        ),
        **_errors(given_Nk[kept_Nk], found.log_probs_Nk[kept_Nk]),
    )


def measure_samples(
    coding: SamplesCoding, ids_NK: Integers, log_probs_NK: Floats | None, rows_NW: UInt8
) -> Fidelity:
    """Errors of rows [N, W], N >= 1, against the input of `encode_samples`."""
    found = decode_samples(coding, rows_NW)
    assert (found.ids_NK == np.sort(ids_NK, axis=1)).all()
    tokens, width = len(rows_NW), coding.row_bytes
    if log_probs_NK is None or found.log_probs_NK is None:
        return Fidelity(tokens=tokens, entries=0, bytes_per_token=width)
    order_NK = np.argsort(ids_NK, axis=1, kind="stable")
    given_NK = np.take_along_axis(log_probs_NK.astype(np.float64), order_NK, axis=1)
    return Fidelity(tokens=tokens, bytes_per_token=width, **_errors(given_NK, found.log_probs_NK))


def _errors(given: Float64, found: Floats) -> dict[str, float]:
    errors = np.abs(given - found)
    if not errors.size:
        return {"entries": 0}
    return {
        "entries": errors.size,
        "mean_error": float(errors.mean()),
        "max_error": float(errors.max()),
    }


def _divergence(given_NO: Float64, found_NO: Float64) -> float:
    """Mean of KL(given || found) in nats over outcomes [N, O] of which the last is the tail.

    Outcomes that are decoded as absent are part of the tail. The given log-probabilities sum to 1
    but for rounding, which is taken out: it would pass for divergence."""
    mass_NO = np.exp(given_NO)
    mass_NO /= mass_NO.sum(axis=1, keepdims=True)
    lost_NO = found_NO == -np.inf
    lost_NO[:, -1] = False
    mass_NO[:, -1] += np.where(lost_NO, mass_NO, 0.0).sum(axis=1)
    mass_NO[lost_NO] = 0.0
    terms_NO = np.zeros_like(mass_NO)
    some_NO = mass_NO > 0
    terms_NO[some_NO] = mass_NO[some_NO] * (np.log(mass_NO[some_NO]) - found_NO[some_NO])
    return max(0.0, float(terms_NO.sum(axis=1).mean()))
