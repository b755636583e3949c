"""Controls, as ways to read the cache and one way to treat the aligner.

none            the features as cached
undistilled     the student alone: no feature is read, no alignment term is trained
random-aligner  the aligner stays at its random initialisation
shuffled        every example has the feature of another one
noise=SIGMA     Gaussian noise is added to each feature, SIGMA times the features' own spread

These are the paper's; those for class logits alone are in `logit_controls.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import JobError
from ..corpus.labels import LabelValues
from ..store.format.rows import Rows
from ..store.reading.feature_array import FeatureArray
from .logit_controls import (
    LOGIT_CONTROLS,
    class_means,
    permuted_classes,
    smoothed,
    targets,
)

Change = Callable[[Rows, npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Indices [B] and features [B, *shape] as cached -> features to read in their place."""

CONTROLS = ("none", "undistilled", "random-aligner", "shuffled", *LOGIT_CONTROLS)
"""Controls without a parameter."""
CONTROLS_SHOWN = f"{', '.join(CONTROLS)} or noise=SIGMA"

_SPREAD_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Control:
    """A parsed control; `sigma` is 0 unless it is noise."""

    name: Literal[
        "none",
        "undistilled",
        "random-aligner",
        "shuffled",
        "noise",
        "permuted-classes",
        "class-means",
        "smoothed",
    ]
    sigma: float = 0.0

    @property
    def of_logits(self) -> bool:
        """Whether it has a meaning for class logits alone."""
        return self.name in LOGIT_CONTROLS


@dataclass(frozen=True, slots=True)
class Gather:
    """Maps indices into the training set [B] to their features [B, *shape].

    `rows` are the cache rows of all examples, -1 of those that are not in the cache: they have
    NaN for a feature, which nothing may read. `change` makes others of the cached features, if
    given."""

    feature: FeatureArray
    rows: Rows
    change: Change | None = None

    def __call__(self, indices: Rows) -> npt.NDArray[Any]:
        rows = self.rows[indices]
        answered = rows >= 0
        if answered.all():
            return self._of(indices, rows)
        shape = (len(rows), *self.feature.spec.shape)
        dtype = self.feature.dtype if self.change is None else np.float32
        found = np.full(shape, np.nan, dtype)
        found[answered] = self._of(indices[answered], rows[answered])
        return found

    def _of(self, indices: Rows, rows: Rows) -> npt.NDArray[Any]:
        self.feature.require_whole(rows)
        clean = self.feature.gather(rows)
        return clean if self.change is None else self.change(indices, clean.astype(np.float32))

    def has(self, indices: Rows) -> npt.NDArray[np.bool_]:
        """Which examples [B] have a feature."""
        return self.rows[indices] >= 0

    @property
    def bytes(self) -> int:
        """Bytes of the features of all examples."""
        number = self.feature.dtype.itemsize if self.change is None else 4
        return len(self.rows) * math.prod(self.feature.spec.shape) * number

    def will_need(self, indices: Rows) -> None:
        """Start reading features that are gathered soon."""
        rows = self.rows[indices]
        self.feature.will_need(rows[rows >= 0])

    def file_order(self) -> Rows:
        """A sort key for each example [N]: contiguous features have close keys."""
        return self.feature.in_file_order(among_others(self.rows))


def among_others(rows: Rows) -> Rows:
    """Cache rows by which to order examples: those without one come in turn among the others."""
    answered = rows[rows >= 0]
    ordered = rows.copy()
    ordered[rows < 0] = np.resize(answered, len(rows) - len(answered))
    return ordered


def parse_control(text: str) -> Control:
    """Read the name of a control, or `noise=SIGMA`. Raises JobError for anything else."""
    name, equals, value = text.partition("=")
    if name in CONTROLS and not equals:
        return Control(name)  # type: ignore[arg-type]
    try:
        sigma = float(value)
    except ValueError:
        sigma = math.nan
    if name == "noise" and math.isfinite(sigma) and sigma >= 0:
        return Control("noise", sigma)
    raise JobError(f"control {text!r}: is not {CONTROLS_SHOWN} with SIGMA 0 or more")


def controlled(
    feature: FeatureArray,
    rows: Rows,
    control: Control,
    seed: int,
    source: str = "",
    labels: LabelValues | None = None,
) -> Gather:
    """A reader of the features of a training set with cache rows `rows` [N], under its control.
    `source`: name of the source, which seeds its noise and shuffling; `labels` [N] are for controls
    of logits."""
    if control.of_logits:
        assert labels is not None
        entropy = [seed, *source_entropy(source)]
        return Gather(feature, rows, _of_logits(feature, rows, control, entropy, labels))
    if control.name == "shuffled":
        rows = shuffled(rows, seed, source)
    if control.name == "noise" and control.sigma > 0:
        scale = np.float32(control.sigma * _spread(feature, rows))
        return Gather(feature, rows, partial(_with_noise, seed, source, scale))
    return Gather(feature, rows)


def _of_logits(
    feature: FeatureArray, rows: Rows, control: Control, entropy: list[int], labels: LabelValues
) -> Change:
    means_KK = class_means(feature, rows, labels) if control.name == "class-means" else None

    def change(indices: Rows, clean: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits_BK, labels_B = clean.reshape(len(clean), -1), labels[indices]
        if means_KK is not None:
            changed = means_KK[targets(logits_BK, labels_B)]
        elif control.name == "smoothed":
            changed = smoothed(logits_BK, labels_B)
        else:
            changed = permuted_classes(logits_BK, labels_B, indices, entropy)
        return changed.reshape(clean.shape)

    return change


def shuffled(rows: Rows, seed: int, source: str = "") -> Rows:
    """Every example has the cache row of another one, if it has one at all."""
    answered = np.flatnonzero(rows >= 0)
    moved = rows.copy()
    moved[answered] = rows[answered][other_indices(len(answered), seed, source)]
    return moved


def other_indices(count: int, seed: int, source: str = "") -> Rows:
    """A permutation, uniform over the cyclic ones, so that no example keeps its own feature."""
    order = np.random.default_rng([seed, 0, *source_entropy(source)]).permutation(count)
    shuffled = np.empty(count, dtype=np.int64)
    shuffled[order] = np.roll(order, 1)
    return shuffled


def source_entropy(source: str) -> list[int]:
    """Nothing for the only source, or the first: its random numbers are those of a single
    source."""
    return [int.from_bytes(source.encode(), "big")] if source else []


def _with_noise(
    seed: int, source: str, scale: np.float32, indices: Rows, clean: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """An example's noise is the same in every epoch: a noisy teacher, not an augmentation."""
    own = source_entropy(source)
    noise = [
        np.random.default_rng([seed, 1, index, *own]).standard_normal(clean.shape[1:], np.float32)
        for index in indices
    ]
    return clean + scale * np.stack(noise)


def _spread(feature: FeatureArray, rows: Rows) -> np.float32:
    """Standard deviation of single numbers around their mean over examples."""
    sample = feature.gather(rows[rows >= 0][:_SPREAD_ROWS]).astype(np.float64)
    return np.float32(np.sqrt(sample.var(axis=0).mean()))
