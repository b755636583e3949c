"""Controls for class logits: each keeps a part of what they say and takes the rest away.

permuted-classes  The logits of the classes other than the target change places, at random for each
                  example: confidence and entropy stay, which class is like which is lost
                  (Furlanello et al., Born-Again Neural Networks, arXiv 1805.04770, DKPP).
class-means       Every example has the mean logits of its class: how classes are related on the
                  whole stays, what is peculiar to an example is lost (Tang et al., Understanding
                  and Improving Knowledge Distillation, arXiv 2002.03532).
smoothed          The target's logit is as high above the others, which are equal, as gives
                  softmax(logits) the teacher's entropy: label smoothing by the teacher's doubt.

An example's target is its label, or the teacher's largest logit where it has none. K classes; all
is computed in float64 and returned as float32.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import JobError
from ..corpus.labels import MISSING
from ..store.format.rows import Rows
from ..store.reading.feature_array import FeatureArray

LOGIT_CONTROLS = ("permuted-classes", "class-means", "smoothed")
_STREAM = 2
"""Stream of random numbers; shuffling has 0, noise 1."""
_BLOCK_ROWS = 65536
_HALVINGS = 80
"""Bisection steps for a margin between 0 and 800, which leave nothing that float64 tells."""

Logits = npt.NDArray[np.float32]


def require_classes(name: str, classes: int) -> None:
    """Raise JobError for a control of logits that has nothing to change."""
    if name == "permuted-classes" and classes < 3:
        raise JobError(
            f"control permuted-classes: the teacher has {classes} classes, so only one beside the "
            "target, and nothing to change places with; use class-means or smoothed"
        )
    if name in LOGIT_CONTROLS and classes < 2:
        raise JobError(f"control {name}: is for logits of two classes or more, not of {classes}")


def targets(logits_BK: npt.NDArray[Any], labels_B: npt.NDArray[np.int64]) -> Rows:
    """The target class of each example: its label, or the largest logit where that is missing."""
    return np.where(labels_B == MISSING, logits_BK.argmax(axis=1), labels_B)


def permuted_classes(
    logits_BK: Logits, labels_B: npt.NDArray[np.int64], indices_B: Rows, entropy: list[int]
) -> Logits:
    """The other classes' logits of each example in another order, a function of `entropy`, with the
    seed first, and the index of the example."""
    target_B = targets(logits_BK, labels_B)
    seed, *own = entropy
    permuted = logits_BK.copy()
    for row, (target, index) in enumerate(zip(target_B, indices_B, strict=True)):
        others = np.delete(np.arange(logits_BK.shape[1]), target)
        random = np.random.default_rng([seed, _STREAM, int(index), *own])
        permuted[row, others] = logits_BK[row, random.permutation(others)]
    return permuted


def smoothed(logits_BK: Logits, labels_B: npt.NDArray[np.int64]) -> Logits:
    """log softmax of (m, 0, ..., 0), m >= 0 at the target, with the entropy of softmax(logits).

    The entropy falls with m from log K to 0, so m is found by bisection; one that is 0 as far as
    float64 tells gives the largest m, 800."""
    from scipy.special import entr, log_softmax, softmax  # not for those who parse a job

    wanted_B = entr(softmax(logits_BK.astype(np.float64), axis=1)).sum(axis=1)
    classes = logits_BK.shape[1]
    low_B, high_B = np.zeros(len(wanted_B)), np.full(len(wanted_B), 800.0)
    for _ in range(_HALVINGS):
        middle_B = (low_B + high_B) / 2
        above = _entropy(middle_B, classes) > wanted_B
        low_B, high_B = np.where(above, middle_B, low_B), np.where(above, high_B, middle_B)
    peaked_BK = np.zeros(logits_BK.shape)
    peaked_BK[np.arange(len(low_B)), targets(logits_BK, labels_B)] = (low_B + high_B) / 2
    smooth: Logits = log_softmax(peaked_BK, axis=1).astype(np.float32)
    return smooth


def _entropy(margin_B: npt.NDArray[np.float64], classes: int) -> npt.NDArray[np.float64]:
    """The entropy in nats of softmax(m, 0, ..., 0)."""
    from scipy.special import xlogy

    others_B = np.exp(-margin_B)  # relative to the target: no overflow
    total_B = 1 + (classes - 1) * others_B
    entropy_B: npt.NDArray[np.float64] = (
        np.log(total_B) - (classes - 1) * xlogy(others_B, others_B) / total_B
    )
    return entropy_B


def class_means(feature: FeatureArray, rows: Rows, labels: npt.NDArray[np.int64]) -> Logits:
    """Mean logits [K, K] of the examples of each target, over all N with a cache row, -1 being
    none; zeros for a class that none has. Order of summation: that of the examples."""
    classes = feature.spec.values_per_row
    sums, counts = np.zeros((classes, classes)), np.zeros(classes)
    answered = np.flatnonzero(rows >= 0)
    for start in range(0, len(answered), _BLOCK_ROWS):
        block = answered[start : start + _BLOCK_ROWS]
        logits_BK = feature.gather(rows[block]).reshape(len(block), -1).astype(np.float64)
        target_B = targets(logits_BK, labels[block])
        np.add.at(sums, target_B, logits_BK)
        np.add.at(counts, target_B, 1)
    means: Logits = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    return means
