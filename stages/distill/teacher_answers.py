"""Teachers' cached answers for the texts of an evaluation, compared with what a student says there.

An evaluation runs the student once, as ever; its outputs are compared with answers that are read
from the cache, which may lack some of the texts: measures are over those that it holds.

ClassAnswers    logits of the student's classes: agreement, teacher_kl, and the teacher's own
                teacher_accuracy, teacher_ece
NumberAnswers   the student's numbers: teacher_rmse, teacher_pearson
FeatureAnswers  any feature: teacher_cka; where the student meets the feature itself, also
                teacher_cosine, teacher_mse

Shapes: N texts, B texts of a batch, K classes or numbers, D a pooled text, H numbers of a feature.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..corpus.labels import LabelSpace, LabelValues, is_missing
from .calibration import calibration_sums
from .controls import Gather
from .measures import (
    agreement,
    cosines,
    label_agreement,
    label_kl,
    linear_cka,
    pearson,
    predictive_kl,
    root_mean_squared_error,
)
from .order import Indices

CKA_TEXTS = 1024
"""The most texts that CKA compares, evenly spaced over those with an answer: matrices of this
size are made of them."""

Outputs = npt.NDArray[Any]
Figures = dict[str, float]


class TeacherAnswers(ABC):
    """One source's answers for N texts, some of which may have none, but not all."""

    names: ClassVar[tuple[str, ...]]
    """The measures that an epoch can be chosen by; of a feature, all that there may be."""

    def __init__(self, gather: Gather) -> None:
        self.gather = gather
        self.answered: npt.NDArray[np.int64] = np.flatnonzero(gather.rows >= 0)
        """Indices of the texts with an answer."""
        assert len(self.answered), "there are answers"

    @abstractmethod
    def figures(self, outputs_NK: Outputs, labels_N: LabelValues, space: LabelSpace) -> Figures:
        """Measures of an evaluation with these outputs; its labels are for the teacher's own."""

    @cached_property
    def _numbers_AK(self) -> Outputs:
        """The answers [A, K] of the A texts that have one, read once."""
        return _flat(self.gather(self.answered))


class ClassAnswers(TeacherAnswers):
    """Logits of the student's own classes, in their order."""

    names = ("agreement", "teacher_kl")

    def figures(self, outputs_NK: Outputs, labels_N: LabelValues, space: LabelSpace) -> Figures:
        own_AK, labels_A = outputs_NK[self.answered], labels_N[self.answered]
        if space.multilabel:
            return {
                "agreement": label_agreement(own_AK, self._numbers_AK),
                "teacher_kl": label_kl(own_AK, self._numbers_AK),
            }
        given = ~is_missing(labels_A)
        found = {
            "agreement": agreement(own_AK, self._numbers_AK),
            "teacher_kl": predictive_kl(own_AK, self._numbers_AK),
        }
        if given.any():
            classes = labels_A[given] if labels_A.ndim == 1 else labels_A[given].argmax(axis=1)
            sums = calibration_sums(self._numbers_AK[given], classes)
            found |= {"teacher_accuracy": sums.accuracy, "teacher_ece": sums.by_bin.error}
        return found


class NumberAnswers(TeacherAnswers):
    """Numbers that the student predicts, too."""

    names = ("teacher_rmse", "teacher_pearson")

    def figures(self, outputs_NK: Outputs, labels_N: LabelValues, space: LabelSpace) -> Figures:
        own_AK = outputs_NK[self.answered]
        return {
            "teacher_rmse": root_mean_squared_error(own_AK, self._numbers_AK),
            "teacher_pearson": pearson(own_AK, self._numbers_AK),
        }


class FeatureAnswers(TeacherAnswers):
    """A feature of any width. `embedding` maps pooled texts to where they are to meet it; None
    where they are not compared number by number."""

    names = ("teacher_cka", "teacher_cosine", "teacher_mse")

    def __init__(
        self, gather: Gather, embedding: Callable[[Tensor], Tensor | None] | None = None
    ) -> None:
        super().__init__(gather)
        self._embedding = embedding
        spaced = np.linspace(0, len(self.answered) - 1, min(CKA_TEXTS, len(self.answered)))
        self._sample = self.answered[spaced.round().astype(np.int64)]
        self._pooled: dict[int, Outputs] = {}
        count = len(gather.rows)
        self._cosines_N, self._squares_N = np.zeros(count), np.zeros(count)

    def see(self, indices: Indices, pooled_BD: Tensor) -> None:
        """Take the pooled texts of a batch. Each evaluation shows all texts, which replaces what
        was seen of them before."""
        own = np.flatnonzero(self.gather.has(indices))
        if not len(own):
            return
        pooled_AD = _array(pooled_BD)[own]
        chosen = np.isin(indices[own], self._sample)
        self._pooled |= dict(zip(indices[own][chosen].tolist(), pooled_AD[chosen], strict=True))
        met_BH = None if self._embedding is None else self._embedding(pooled_BD)
        if met_BH is None:
            return
        theirs_AH, ours_AH = _flat(self.gather(indices[own])), _array(met_BH)[own]
        self._cosines_N[indices[own]] = cosines(ours_AH, theirs_AH)
        self._squares_N[indices[own]] = np.square(ours_AH - theirs_AH).mean(axis=1)

    def figures(self, outputs_NK: Outputs, labels_N: LabelValues, space: LabelSpace) -> Figures:
        pooled_SD = np.stack([self._pooled[index] for index in self._sample.tolist()])
        found = {"teacher_cka": linear_cka(pooled_SD, self._sample_SH)}
        if self._embedding is not None:
            found |= {
                "teacher_cosine": float(self._cosines_N[self.answered].mean()),
                "teacher_mse": float(self._squares_N[self.answered].mean()),
            }
        return found

    @cached_property
    def _sample_SH(self) -> Outputs:
        return _flat(self.gather(self._sample))


class AllAnswers:
    """The answers of all sources that are measured, by the prefix of their figures' names."""

    def __init__(self, sources: Mapping[str, TeacherAnswers], space: LabelSpace) -> None:
        self._sources, self._space = sources, space

    def see(self, indices: Indices, pooled_BD: Tensor) -> None:
        """Take the pooled texts of a batch."""
        for each in self._sources.values():
            if isinstance(each, FeatureAnswers):
                each.see(indices, pooled_BD)

    def figures(self, outputs_NK: Outputs, labels_N: LabelValues) -> Figures:
        """The figures of all sources."""
        return {
            f"{prefix}{name}": value
            for prefix, each in self._sources.items()
            for name, value in each.figures(outputs_NK, labels_N, self._space).items()
        }


def prefixes(sources: Sequence[str]) -> dict[str, str]:
    """What the names of figures begin with, by source: nothing where there is one source, else its
    name and a dot."""
    return {name: "" if len(sources) == 1 else f"{name}." for name in sources}


def _array(tensor: Tensor) -> Outputs:
    return tensor.detach().float().cpu().numpy().astype(np.float64)


def _flat(values: npt.NDArray[Any]) -> Outputs:
    return values.reshape(len(values), -1).astype(np.float64)
