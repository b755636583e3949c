"""The answers of one shard in the making: each example has its place, answers come in any order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import KeyArray, keys_to_array
from .teachers.base import Answers, Example

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FinishedRows:
    """What a shard buffer holds of answered rows, in order: the arguments of a commit."""

    keys: KeyArray
    features: Mapping[str, npt.NDArray[Any]]
    truncated: npt.NDArray[np.bool_]
    tables: Mapping[str, pa.Table]


class ShardBuffer:
    """Room for answers to N examples. Not a number stands where no answer is."""

    def __init__(self, examples: Sequence[Example], specs: Sequence[FeatureSpec]) -> None:
        self._examples = examples
        self._features = {
            spec.name: np.full((len(examples), *spec.shape), np.nan, dtype=spec.dtype)
            for spec in specs
        }
        self._answered = np.zeros(len(examples), dtype=bool)
        self._truncated = np.zeros(len(examples), dtype=bool)
        self._images: dict[int, bytes] = {}

    def put(self, places: Places, answers: Answers) -> dict[int, str]:
        """Keep the answers to the examples at `places`, those with numbers that are not finite
        left out; returns place -> feature of these. Half precision that overflows is not finite."""
        finite = np.ones(len(places), dtype=bool)
        bad: dict[int, str] = {}
        for name, stored in self._features.items():
            with np.errstate(over="ignore"):
                stored[places] = answers.features[name]
            axes = tuple(range(1, stored.ndim))
            ok = np.isfinite(stored[places]).all(axis=axes)
            bad |= {int(place): name for place in places[~ok]}
            finite &= ok
        self._answered[places[finite]] = True
        self._truncated[places] = answers.truncated
        self._images.update(zip(places.tolist(), answers.images, strict=False))
        return bad

    def finished(self) -> FinishedRows:
        """The answered rows."""
        rows = np.flatnonzero(self._answered)
        places = rows.tolist()
        tables = {}
        if self._images:
            png = pa.array([self._images[row] for row in places], pa.binary())
            tables["images"] = pa.table({"png": png})
        return FinishedRows(
            keys=keys_to_array(self._examples[row].key for row in places),
            features={name: values[rows] for name, values in self._features.items()},
            truncated=self._truncated[rows],
            tables=tables,
        )
