"""What decoded answers lost, and how long it took."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from figures import Repeats

from .answers import Answers
from .codec import Codec, Decoded

LEAST_TAIL = 1e-6
"""What is left for the tail where a codec that does not keep it sums to 1 or more."""


def check_ids(codec: Codec, answers: Answers, found: Decoded) -> None:
    """Raises ValueError unless ids come back as they were given."""
    given = np.sort(answers.samples[:, : codec.k], axis=1) if codec.drawn else answers.ids
    if not np.array_equal(found.ids, given[:, : codec.k]):
        raise ValueError(f"{codec.name}: other ids come back")


def losses(codec: Codec, answers: Answers, found: Decoded) -> dict[str, float]:
    """Means over tokens, in nats: errors of entries; for top-k three divergences of the decoded
    distribution q from the teacher's p. "kl": the k ids and the tail are the outcomes. "ids": the
    k ids are, renormalised on both sides. "full": all ids are, the tail of q spread evenly."""
    if found.log_probs is None:
        return {}
    if codec.drawn:
        order = np.argsort(answers.samples[:, : codec.k], axis=1, kind="stable")
        return _errors(np.take_along_axis(answers.sample_log_probs, order, axis=1), found.log_probs)
    given = answers.log_probs[:, : codec.k]
    log_p, tail_p = given.astype(np.float64), answers.tail_beyond(codec.k)
    log_q, log_tail_q = _whole(found)
    p = np.exp(log_p)
    kept = (p * (log_p - log_q)).sum(axis=1)
    p_ids = p / p.sum(axis=1, keepdims=True)
    log_q_ids = log_q - np.log(np.exp(log_q).sum(axis=1, keepdims=True))
    spread = log_tail_q - np.log(answers.vocabulary - codec.k)
    return _errors(given, found.log_probs) | {
        "kl": (kept + tail_p * (np.log(tail_p) - log_tail_q)).mean(),
        "ids": (p_ids * (np.log(p_ids) - log_q_ids)).sum(axis=1).mean(),
        "full": (kept + answers.p_log_p_beyond(codec.k) - tail_p * spread).mean(),
    }


def _errors(given: np.ndarray, found: np.ndarray) -> dict[str, float]:
    errors = np.abs(given.astype(np.float64) - found[:, : given.shape[1]])
    return {"mean": errors.mean(), "max": errors.max()}


def _whole(found: Decoded) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of entries and tail; the tail is what entries leave if it is not kept."""
    log_q = found.log_probs.astype(np.float64)
    if found.log_tail is not None:
        return log_q, found.log_tail.astype(np.float64)
    mass = np.exp(log_q).sum(axis=1)
    tail = np.maximum(1 - mass, LEAST_TAIL)
    log_sum = np.log(mass + tail)
    return log_q - log_sum[:, None], np.log(tail) - log_sum


def microseconds(
    codecs: Sequence[Codec], answers: Answers, repeats: int
) -> dict[str, tuple[Repeats, Repeats]]:
    """Encoding and decoding per token; codecs take turns, so that what slows one slows all."""
    times: dict[str, tuple[Repeats, Repeats]] = {codec.name: ([], []) for codec in codecs}
    for _ in range(repeats):
        for codec in codecs:
            encoding, stored = _timed(codec.encode, answers)
            decoding, _ = _timed(codec.decode, stored)
            for figures, seconds in zip(times[codec.name], (encoding, decoding), strict=True):
                figures.append(1e6 * seconds / len(answers))
    return times


def _timed(work: Any, argument: Any) -> tuple[float, Any]:
    start = perf_counter()
    result = work(argument)
    return perf_counter() - start, result
