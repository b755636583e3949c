"""Cached embeddings as a search reads them: block by block, checked."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import IntArray
from ...stages.corpus.corpus import Corpus
from ...stages.store.format.rows import Rows
from ...stages.store.reading.reader import Cache
from ..answers import open_answers
from ..objective_keys import CacheKeys


@dataclass(frozen=True, slots=True)
class CachedVectors:
    """The embeddings of what the rows of a corpus are about, read from a cache by its rows; what is
    not finite is refused, and with `zero_is_wrong` what is zero."""

    corpus: Corpus
    cache: Cache
    feature: str
    rows: Rows
    zero_is_wrong: bool

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, wanted: slice | IntArray) -> npt.NDArray[Any]:
        rows = self.rows[wanted]
        found = self.cache[self.feature].gather(rows).reshape(len(rows), -1)
        # A sum is finite only if all numbers are, or they are too large to be embeddings.
        with np.errstate(over="ignore", invalid="ignore"):
            wrong = ~np.isfinite(found.sum(axis=1, dtype=np.float64))
        problem = "is not finite"
        if self.zero_is_wrong and not wrong.any():
            wrong, problem = ~found.any(axis=1), "is zero, which has no cosine"
        if wrong.any():
            at = int(np.arange(len(self))[wanted][wrong][0])
            raise JobError(
                f"feature {self.feature!r}: the embedding of {self.corpus.where(at)} {problem}; "
                "compute it again, or leave the row out"
            )
        return found


def open_vectors(keys: CacheKeys, named: str | None, corpus: Corpus) -> tuple[Cache, str]:
    """A cache, and its feature of whole examples that is meant. Raises JobError for one that is no
    vector."""
    answers = open_answers(keys)
    feature = named or answers.cache.features[0]
    if feature in answers.cache.features:
        spec = answers.cache.feature_spec(feature)
        if spec.axis is not None or np.dtype(spec.dtype).kind != "f":
            raise JobError(
                f"feature {feature!r}: is {spec.shown}, no embedding; name another of "
                f"{', '.join(answers.cache.features)}"
            )
    return answers.of(feature, [corpus]).cache, feature


def of_length_1(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors of length 1 along the last axis; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: npt.NDArray[np.float32] = np.divide(
        vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0
    )
    return found
