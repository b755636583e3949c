"""The expected calibration error: whether predictions are right as often as they are sure.

    ECE = sum over 15 bins of equal width: n_bin / N · |accuracy - mean confidence|

Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, equation 3. With
few predictions a bin holds few, and the estimate is too large.
Shapes: N predictions, K classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

CONFIDENCE_BINS = 15


@dataclass(frozen=True, slots=True)
class Calibration:
    """Accuracy by confidence: for each non-empty bin, its examples, their mean confidence, and
    their accuracy [BINS]."""

    counts: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.average(gaps, weights=self.counts))


@dataclass(frozen=True, slots=True)
class CalibrationSums:
    """Counts, confidence and hits by bin of confidence [BINS], of predictions that come in parts:
    15 bins of equal width; a bin holds its upper end, the last one 1."""

    counts: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]

    @classmethod
    def of(cls, confidence: npt.NDArray[Any], right: npt.NDArray[Any]) -> "CalibrationSums":
        """Sums of N predictions with their confidence [N] and whether they were right [N]."""
        bins = np.ceil(confidence * CONFIDENCE_BINS).astype(np.int64) - 1
        counts = np.bincount(bins, minlength=CONFIDENCE_BINS)
        sure, hits = (np.bincount(bins, each, CONFIDENCE_BINS) for each in (confidence, right))
        return cls(counts, sure.astype(np.float64), hits.astype(np.float64))

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        return CalibrationSums(
            self.counts + other.counts,
            self.confidence + other.confidence,
            self.right + other.right,
        )

    @property
    def accuracy(self) -> float:
        """Share of predictions that were right."""
        return float(self.right.sum() / self.counts.sum())

    @property
    def by_bin(self) -> Calibration:
        """Means of each bin that is not empty."""
        full = self.counts > 0
        means = [total[full] / self.counts[full] for total in (self.confidence, self.right)]
        return Calibration(self.counts[full], *means)


def calibration_sums(outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> CalibrationSums:
    """Sums of logits [N, K], which may be -inf, with labels [N]; the confidence of a prediction is
    the softmax of its class."""
    confidence = softmax(outputs.astype(np.float64), axis=1).max(axis=1)
    return CalibrationSums.of(confidence, outputs.argmax(axis=1) == labels)
