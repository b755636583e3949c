"""The contract of objectives that compare queries with passages, as tests.

`pooled` of a batch holds the embeddings of each row's texts in a row [B, C · E], a feature those of
the teacher [B, C · H], or its scores of the pairs [B, C - 1].
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from ...cache_schemas.errors import InputError
from ..distill.embedding.candidates import Candidates
from ..distill.objectives.base import Objective, Sizes, StudentSide
from .objectives import Batch, ObjectiveTests


class CandidateObjectiveTests(ObjectiveTests):
    """Tests for objectives of students that embed several texts of each row."""

    candidates: ClassVar[int] = 3
    """C, texts of each row."""
    feature_shapes = ((4,),)
    """(H,) for embeddings, (1,) for scores of pairs."""

    @pytest.fixture
    def sizes(self) -> Sizes:
        """Sizes for the objective; there is one task."""
        return self._sizes(regression=False)

    def batch(self, sizes: Sizes, rows: int, draw: torch.Generator) -> Batch:
        """A batch of float32."""
        width = self.candidates * sizes.pooled_dim
        features = () if sizes.feature_shape is None else (self._feature(rows, draw),)
        return Batch(
            pooled=torch.randn(rows, width, generator=draw),
            output=torch.zeros(rows, 1),
            features=features,
            labels=5 * torch.rand(rows, generator=draw),
        )

    def test_features_are_needed_as_declared(self, sizes: Sizes) -> None:
        """Nor is anything learned without candidates."""
        objective = self._made(sizes)
        side, sources, labels = self._of_sources(objective, self._batch(sizes))
        if self._class().reads.features:
            bare = replace(side, candidates=replace(side.candidates, features={}))
            with pytest.raises(InputError):
                objective.of_sources(bare, {}, labels)
        with pytest.raises(InputError):
            objective.of_sources(replace(side, candidates=None), sources, labels)

    def test_padding_changes_nothing(self, sizes: Sizes) -> None:
        """A further candidate that every row lacks, with whatever numbers."""
        objective, batch = self._made(sizes), self._batch(sizes)
        side, sources, labels = self._of_sources(objective, batch)
        whole = side.candidates
        places = np.pad(whole.places, ((0, 0), (0, 1)), constant_values=-1)
        wide = Candidates(
            _wider(whole.embeddings_BCE),
            places,
            {name: _wider(each) for name, each in whole.features.items()},
        )
        terms = objective.of_sources(replace(side, candidates=wide), sources, labels)
        for name, term in self._terms(objective, batch).items():
            torch.testing.assert_close(terms[name], term, msg=f"{name} reads absent texts")

    def _feature(self, rows: int, draw: torch.Generator) -> Tensor:
        (shape,) = self.feature_shapes
        count = self.candidates - 1 if shape == (1,) else self.candidates
        return torch.randn(rows, count * shape[0], generator=draw)

    def _of_sources(self, objective: Objective, batch: Batch) -> tuple[Any, ...]:
        rows = len(batch.pooled)
        features = {
            name: each.reshape(rows, -1, *self.feature_shapes[0])
            for name, each in zip(objective.sources, batch.features, strict=True)
        }
        places = np.arange(rows * self.candidates).reshape(rows, self.candidates)
        embeddings_BCE = batch.pooled.reshape(rows, self.candidates, -1)
        side = StudentSide(candidates=Candidates(embeddings_BCE, places, features))
        return side, {}, batch.labels


def _wider(values: Tensor) -> Tensor:
    """One candidate more for each row."""
    return torch.cat([values, torch.full_like(values[:, :1], 7.0)], dim=1)
