"""Negatives of contrastive objectives: rows of a source beside those of a batch.

In: the cache row of each training example, the examples of a batch, a number. Out: so many other
examples, with texts that are not in the batch. They are a function of (seed, source, examples of
the batch): no queue is kept and nothing of them is in a checkpoint, a resumed run draws the same,
and so do all processes, each of which reads all of them. Cost: a gather of so many rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..store.format.rows import Rows
from .controls import source_entropy
from .order import Indices
from .placement import to_device

_STREAM = 3
"""The stream of random numbers of draws; orders of examples have streams 0 to 2."""


@dataclass(frozen=True, slots=True)
class Negatives:
    """N rows that were drawn: features [N, *shape] as stored, and labels [N]."""

    features: Tensor
    labels: Tensor

    def first(self, count: int) -> "Negatives":
        """At most so many of them."""
        return Negatives(self.features[:count], self.labels[:count])

    def to(self, device: torch.device, non_blocking: bool = False) -> "Negatives":
        """The same on a device; as any batch, for which the host need not wait."""
        features, labels = (to_device(each, device) for each in (self.features, self.labels))
        return Negatives(features, labels)


def negatives_name(source: str) -> str:
    """Their name among the sources of a batch."""
    return f"negatives of {source}"


def draw(rows: Rows, batch: Indices, count: int, seed: int, source: str) -> Indices:
    """Up to `count` different examples with a feature whose texts are none of those in a batch;
    fewer where there are no more. `rows`: the cache row of each example, -1 without a feature."""
    random = np.random.default_rng([seed, _STREAM, *source_entropy(source), count, *batch])
    # A few more than needed: those in the batch are left out.
    few = random.choice(len(rows), min(len(rows), 2 * (count + len(batch))), replace=False)
    found = _others(rows, few, batch)
    if len(found) < count < len(rows):
        found = _others(rows, random.permutation(len(rows)), batch)
    return found[:count]


def _others(rows: Rows, examples: Indices, batch: Indices) -> Indices:
    drawn = rows[examples]
    return examples[(drawn >= 0) & ~np.isin(drawn, rows[batch])]
