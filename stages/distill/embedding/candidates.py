"""A batch of examples of several texts, as an objective reads it.

Shapes: B examples, C texts of each (the query first, its positive next, then further candidates), E
numbers of an embedding, P texts in all that are there. Where a text has a vector for each token, E
stands for T tokens of E numbers, with zeros behind the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..placement import to_device

_SMALLEST = 1e-12
"""Shorter prefixes are divided by it."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The student's embeddings of a whole batch, by example."""

    embeddings_BCE: Tensor
    """Zeros where a text is absent."""
    places: npt.NDArray[np.int64]
    """Numbers of the texts [B, C], the same for the same words, whatever prompt they stand behind;
    -1 where one is absent."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Features of each source: those of the texts [B, C, *shape], or of pairs of the query and each
    other text [B, C - 1, *shape]; zeros where there is none."""

    @property
    def all_present(self) -> bool:
        """Whether no example lacks a text."""
        return bool((self.places >= 0).all())

    def on_device(self, mask: npt.NDArray[np.bool_]) -> Tensor:
        """A mask that was made on the host, where the embeddings are."""
        return to_device(torch.from_numpy(mask), self.embeddings_BCE.device)

    def present(self) -> Tensor | None:
        """Which texts are there [B, C]; None: all."""
        return None if self.all_present else self.on_device(self.places >= 0)

    def first(self, numbers: int) -> "Candidates":
        """The same with the first numbers of each embedding, at the length of the whole: 1 where
        embeddings have length 1."""
        cut = self.embeddings_BCE[..., :numbers]
        whole, own = (
            torch.linalg.vector_norm(each, dim=-1, keepdim=True)
            for each in (self.embeddings_BCE, cut)
        )
        return Candidates(cut * (whole / own.clamp(min=_SMALLEST)), self.places, self.features)


def rows_that_are_there(values: Tensor, places: npt.NDArray[np.int64]) -> Tensor:
    """Values [B, C, ...] of texts that are there, in a row [P, ...]."""
    flat = values.flatten(0, 1)
    if (places >= 0).all():
        return flat
    chosen = torch.from_numpy(np.flatnonzero(places >= 0))
    return flat.index_select(0, to_device(chosen, values.device))


def by_example(values: Tensor, places: npt.NDArray[np.int64]) -> Tensor:
    """Values [P, ...] of texts that are there, by example [B, C, ...]; zeros for the others."""
    shape = (*places.shape, *values.shape[1:])
    if (places >= 0).all():
        return values.reshape(shape)
    chosen = torch.from_numpy(np.flatnonzero(places >= 0))
    empty = values.new_zeros(places.size, *values.shape[1:])
    return empty.index_copy(0, to_device(chosen, values.device), values).reshape(shape)
