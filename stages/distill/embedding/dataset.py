"""Batches of examples of several texts: tokens of the texts that are there, features of each.

Features are kept once for each different text, wherever they are kept, and gathered for a batch by
the places of its examples: [B, C, *shape], zeros where an example lacks a text. Scores of pairs
have a place for each query and candidate.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.errors import TrainingError
from ...corpus.labels import LabelValues
from ...language.masks import needs_mask
from ...store.reading.prefetch import BLOCK_ROWS, BLOCKS_PER_WINDOW, BlockOrder, ReadAhead
from ..batches import Batch, DistillDataset, Features
from ..controls import Gather
from ..negatives import Negatives, draw
from ..order import Indices
from ..placement import to_device
from .groups import GroupTokens, Places

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class VectorGather(Gather):
    """A reader of teacher embeddings; refuses those that no student can be near to. `names`
    describes texts by their numbers."""

    names: Callable[[Indices], list[str]] = field(kw_only=True)

    def __call__(self, indices: Indices) -> npt.NDArray[Any]:
        found = Gather.__call__(self, indices)
        flat = found.reshape(len(found), math.prod(found.shape[1:]))  # of none, too
        good = np.isfinite(flat).all(axis=1) & flat.any(axis=1)
        if not good.all():
            named = self.names(np.unique(indices[~good]))
            raise TrainingError(
                f"teacher feature {self.feature.spec.name!r}: the vectors of {len(named)} texts "
                f"are zero or not finite, and have no direction: {'; '.join(named[:_SHOWN])}; "
                "leave these rows out, or check the teacher (`armada cache verify`)"
            )
        return found


def joined_numbers(*numbers: Indices) -> Indices:
    """A number for each of P things, the same for two that share one of their own numbers [P] with
    each other, or with things between them: the connected components."""
    found = np.arange(len(numbers[0]))
    while True:
        before = found
        for each in numbers:
            _, group_P = np.unique(each, return_inverse=True)
            least = np.full(len(found), len(found))
            np.minimum.at(least, group_P, found)
            found = least[group_P]
        if np.array_equal(found, before):
            return found


Figures = dict[str, float]
Measure = Callable[[npt.NDArray[np.float32], LabelValues], Figures]
"""Embeddings [T, E] of the texts of an evaluation, and its labels -> metrics."""


class EmbeddingDataset(DistillDataset):
    """N examples of C texts; `features` are those of T texts, or of pairs, by source."""

    tokens: GroupTokens
    measure: Measure | None = None
    """Metrics of an evaluation on these examples."""
    has_loss: bool = True
    """Whether they have all that the objective reads; examples to validate by may lack it."""

    def __init__(
        self,
        tokens: GroupTokens,
        labels: LabelValues,
        features: Mapping[str, Features],
        places: Mapping[str, Places],
        names: Callable[[Indices], list[str]],
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """`places`: which feature of a source stands in which place of each example [N, C]."""
        super().__init__(tokens, labels, features, names, weights)
        self.places = dict(places)
        self._longest = int(tokens.all_lengths.max(initial=0))

    def _batch(self, whole: Indices) -> Batch:
        chosen = self.processes.share(whole)
        batch: Batch = {**self.tokens.pad(chosen), "indices": whole}
        batch["masked"] = needs_mask(batch)
        batch["lengths"] = self.tokens.lengths(chosen)
        batch |= {"words": self.tokens.words_of(whole), "own_words": self.tokens.words_of(chosen)}
        batch |= {"labels": self.labels_of(chosen), "has_loss": self.has_loss}
        batch["longest"] = self._longest
        if self.apart:
            return batch
        batch |= self.aligner_batch(chosen)
        return batch | ({"negatives": self.negatives_of(whole)} if self.draws else {})

    def features_of(self, indices: Indices, source: str) -> torch.Tensor:
        """The features of texts, or pairs, of examples [B, C, *shape], as stored, on their device;
        zeros for those that are absent."""
        places = self.places[source][indices]
        found = self._of_numbers(np.maximum(places, 0).ravel(), source)
        found = found.reshape(*places.shape, *found.shape[1:])
        if (absent := places < 0).any():
            mask = to_device(torch.from_numpy(absent), found.device)
            found = found.masked_fill(mask.reshape(*places.shape, *[1] * (found.ndim - 2)), 0)
        return found

    def _of_numbers(self, numbers: Indices, source: str) -> torch.Tensor:
        """The features of texts, or pairs, by their numbers."""
        return super().features_of(numbers, source)

    def negatives_of(self, whole: Indices) -> dict[str, Negatives]:
        """Texts that are not in a whole batch, by source."""
        found = {}
        for source, count in self.draws.items():
            places = self.places[source][whole]
            texts, rows = places[places >= 0], self.features[source].rows
            drawn = draw(rows, texts, count, self.draw_seed, source)
            # A text that is read behind two prompts is two texts with one vector; or, where a
            # teacher has read queries behind another prompt, with two.
            _, first = np.unique(np.asarray(rows)[drawn], return_index=True)
            drawn = drawn[np.sort(first)]
            if self.places[source] is self.tokens.places:
                same = np.isin(self.tokens.words[drawn], self.tokens.words[texts])
                drawn = drawn[~same]
            labels = torch.zeros(len(drawn), dtype=torch.int64)
            found[source] = Negatives(self._of_numbers(drawn, source), labels)
        return found

    def repeats(self, indices: Indices) -> dict[str, Indices]:
        """A number for each text of a batch that is there [P], of the sources of texts of which a
        batch has one more than once: the same for the same words, even where a teacher has read
        them behind two prompts; of targets of rows, the same for the same target or words."""
        found = {}
        for source, features in self.features.items():
            texts, words = self.places[source][indices], self.tokens.words_of(indices)
            if self.tokens.tower == "cached":
                texts, words = texts[:, :1], words[:, :1]
            of_texts = self.places[source] is self.tokens.places
            numbers = self.tokens.words if of_texts else np.asarray(features.rows)
            rows = numbers[texts[texts >= 0]]
            if not of_texts and texts.shape == words.shape:
                rows = joined_numbers(rows, words[texts >= 0])
            if len(np.unique(rows)) < len(rows):
                found[source] = rows
        return found

    def has(self, source: str, indices: Indices) -> npt.NDArray[np.bool_]:
        """All have features of all texts that are there."""
        return np.ones(len(indices), np.bool_)

    def has_answers(self, indices: Indices) -> dict[str, npt.NDArray[np.bool_]]:
        """All have: what lacks some is refused."""
        return {}

    def follow_shards(self, source: str) -> None:
        """From now on, epochs follow the shards of a source, by the first text of each example."""
        features, places = self.features[source], self.places[source]

        def will_need(indices: Indices) -> None:
            texts = places[indices]
            features.will_need(texts[texts >= 0])

        order = features.file_order()[np.maximum(places[:, 0], 0)]
        self._blocks = BlockOrder(order, BLOCK_ROWS, BLOCKS_PER_WINDOW)
        self._ahead, self._streamed = ReadAhead(will_need), source

    def embeddings(self, by_example: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The embeddings of the T texts, of those of all examples [N, C, E]; where each token has
        one, [N, C, S, E] of S tokens."""
        places = self.tokens.places
        there = places >= 0
        found = np.empty((len(self.tokens.words), *by_example.shape[2:]), np.float32)
        found[places[there]] = by_example[there]
        return found
