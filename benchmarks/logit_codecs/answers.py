"""A teacher's answers to tokens: all that codecs are given, and all that they are judged by.

Shapes: N tokens, V ids of the vocabulary, k ids kept, MOST of them at most, D samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MOST = 128
MOST_SAMPLES = 50


@dataclass(frozen=True, slots=True)
class Answers:
    """The head of each token's distribution at temperature 1, sums over the rest, and samples."""

    name: str
    vocabulary: int
    ids: np.ndarray  # [N, MOST] int64, most probable first
    log_probs: np.ndarray  # [N, MOST] float32
    tail: np.ndarray  # [N] float64, the mass outside of these
    tail_p_log_p: np.ndarray  # [N] float64, the sum of p log p outside of these
    samples: np.ndarray  # [N, MOST_DRAWS] int64
    sample_log_probs: np.ndarray  # [N, MOST_DRAWS] float32

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and log-probabilities [N, k], and the log of the tail's mass [N, 1]."""
        with np.errstate(divide="ignore"):
            log_tail = np.log(self.tail_beyond(k))
        return self.ids[:, :k], self.log_probs[:, :k], log_tail[:, None]

    def tail_beyond(self, k: int) -> np.ndarray:
        """The mass outside of the first k [N]."""
        return self.tail + np.exp(self.log_probs[:, k:].astype(np.float64)).sum(axis=1)

    def p_log_p_beyond(self, k: int) -> np.ndarray:
        """The sum of p log p outside of the first k [N]."""
        between = self.log_probs[:, k:].astype(np.float64)
        return self.tail_p_log_p + (np.exp(between) * between).sum(axis=1)

    def __len__(self) -> int:
        return len(self.ids)


def make_answers(name: str, chunks: Iterable[np.ndarray], seed: int) -> Answers:
    """From logits [n, V], a few tokens at a time."""
    draw = np.random.default_rng(seed)
    columns = [_of_chunk(logits.astype(np.float64), draw) for logits in chunks]
    vocabulary = int(columns[0][0])
    joined = [np.concatenate(parts) for parts in zip(*(c[1:] for c in columns), strict=True)]
    return Answers(name, vocabulary, *joined)


def _of_chunk(logits: np.ndarray, draw: np.random.Generator) -> tuple[object, ...]:
    logits -= logits.max(axis=1, keepdims=True)
    probs = np.exp(logits)
    sums = probs.sum(axis=1, keepdims=True)
    probs /= sums
    log_probs = logits - np.log(sums)
    some = np.argpartition(-logits, MOST, axis=1)[:, :MOST]
    order = np.argsort(-np.take_along_axis(logits, some, axis=1), axis=1, kind="stable")
    ids = np.take_along_axis(some, order, axis=1)
    samples = _samples(probs, draw)
    head = np.take_along_axis(log_probs, ids, axis=1)
    sample_log_probs = np.take_along_axis(log_probs, samples, axis=1)
    p_log_p = probs * log_probs
    np.put_along_axis(probs, ids, 0.0, axis=1)
    np.put_along_axis(p_log_p, ids, 0.0, axis=1)
    return (
        logits.shape[1],
        ids,
        head.astype(np.float32),
        probs.sum(axis=1),
        p_log_p.sum(axis=1),
        samples,
        sample_log_probs.astype(np.float32),
    )


def _samples(probs: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """[n, MOST_DRAWS] with replacement, by inversion."""
    sums = np.cumsum(probs, axis=1)
    points = draw.random((len(probs), MOST_SAMPLES)) * sums[:, -1:]
    indices = [np.searchsorted(row, at, side="right") for row, at in zip(sums, points, strict=True)]
    return np.minimum(np.stack(indices), probs.shape[1] - 1)
