"""Order of examples and batches: a function of (seed, epoch) alone.

It depends neither on the number of processes nor on earlier reads, so a run can be interrupted at
any step and resumed with another number of processes.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
"""Numbers of examples in a data set."""

GROUPED_BATCHES = 64
"""Among so many batches, texts of like length come together: little padding, and still batches of
other texts in every epoch."""

_GROUPS = 2
"""The stream of random numbers that groups are shuffled by; the aligner's pass has stream 1."""


def epoch_order(count: int, seed: int, epoch: int, stream: int = 0) -> Indices:
    """The order of an epoch; `stream` distinguishes independent passes over the same epoch."""
    return np.random.default_rng([seed, epoch, stream]).permutation(count)


def weighted_order(
    weights: npt.NDArray[np.float64], seed: int, epoch: int, stream: int = 0
) -> Indices:
    """The order of an epoch of N draws in which example i of N comes N w_i / Σ w times, rounded up
    or down at random (systematic sampling: no more left to chance than has to be)."""
    random = np.random.default_rng([seed, epoch, stream])
    count = len(weights)
    mixed = random.permutation(count)
    ends = np.cumsum(weights[mixed])
    points = (np.arange(count) + random.random()) * (ends[-1] / count)
    drawn = mixed[np.minimum(np.searchsorted(ends, points, side="right"), count - 1)]
    return random.permutation(drawn)


def grouped_by_length(
    batches: Iterator[Indices],
    lengths: npt.NDArray[np.int64],
    seed: int,
    epoch: int,
    group: int = GROUPED_BATCHES,
) -> Iterator[Indices]:
    """The same examples in batches of the same sizes, each of texts of similar length; the batches
    of a group come in random order."""
    random = np.random.default_rng([seed, epoch, _GROUPS])
    while chosen := list(islice(batches, group)):
        indices = np.concatenate(chosen)
        by_length = indices[np.argsort(lengths[indices], kind="stable")]
        parts = np.split(by_length, np.cumsum([len(batch) for batch in chosen])[:-1])
        yield from (parts[number] for number in random.permutation(len(parts)))
