"""How near a student is to its teacher on the same texts: pure functions of arrays, in float64.

What a student learns of a teacher is not what it learns of the truth: accuracy may rise while the
student agrees with its teacher less (Stanton et al., "Does Knowledge Distillation Really Work?",
arXiv 2106.05945), and the other way round (`hacking_begins`). All of them are means over texts.

Shapes: N texts, K classes or numbers of an output, D and H numbers of an embedding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..retrieval.metrics import pair_scores

Array = npt.NDArray[Any]

TEACHER_ERRORS = ("teacher_kl", "teacher_rmse", "teacher_mse")
"""Distances to the teacher: the smaller, the nearer."""

TEACHER_MEASURES = (
    *("agreement", *TEACHER_ERRORS),
    *("teacher_pearson", "teacher_cosine", "teacher_cka"),
)
"""Measures of a student by its teacher that an epoch can be chosen by."""

TEACHER_FACTS = ("teacher_accuracy", "teacher_ece")
"""The teacher's own figures on the same texts, for comparison: the same in each epoch."""


def is_teacher_measure(metric: str) -> bool:
    """Whether a metric, maybe with the name of a source before it, compares with a teacher."""
    return metric.rpartition(".")[2] in TEACHER_MEASURES


def agreement(student_NK: Array, teacher_NK: Array) -> float:
    """Share of texts for which student and teacher predict the same class, 0 to 1.

    1/N Σ [argmax_k student = argmax_k teacher]; of equal logits the first counts.
    Source: average top-1 agreement, arXiv 2106.05945."""
    return float((student_NK.argmax(axis=1) == teacher_NK.argmax(axis=1)).mean())


def predictive_kl(student_NK: Array, teacher_NK: Array) -> float:
    """KL(p ‖ q) of the predicted distributions in nats, at temperature 1; 0 if they are equal.

    1/N Σ_n Σ_k p_nk (log p_nk - log q_nk), p = softmax(teacher), q = softmax(student). A class that
    the teacher gives the probability 0 (a logit of -inf) adds nothing.
    Source: average predictive KL, arXiv 2106.05945."""
    from scipy.special import log_softmax  # not for those who read figures

    log_p_NK = log_softmax(teacher_NK.astype(np.float64), axis=1)
    log_q_NK = log_softmax(student_NK.astype(np.float64), axis=1)
    p_NK = np.exp(log_p_NK)
    with np.errstate(invalid="ignore"):  # 0 times infinity, which is left out
        parts_NK = np.where(p_NK > 0, p_NK * (log_p_NK - log_q_NK), 0.0)
    return float(parts_NK.sum(axis=1).mean())


def label_agreement(student_NK: Array, teacher_NK: Array) -> float:
    """Share of labels, over texts and classes, for which both predict that the class holds (a logit
    above 0), or both that it does not, 0 to 1: `agreement` of a multilabel task."""
    return float(((student_NK > 0) == (teacher_NK > 0)).mean())


def label_kl(student_NK: Array, teacher_NK: Array) -> float:
    """KL(p ‖ q) of whether a class holds, in nats, the mean over texts and classes: `predictive_kl`
    of a multilabel task.

    1/(N·K) Σ p (log p - log q) + (1 - p) (log(1 - p) - log(1 - q)), p = sigmoid(teacher), q =
    sigmoid(student): that of two classes with the logits 0 and the label's."""
    both = (
        np.stack([np.zeros(each.size), each.reshape(-1)], 1) for each in (student_NK, teacher_NK)
    )
    return predictive_kl(*both)


def root_mean_squared_error(student_NK: Array, teacher_NK: Array) -> float:
    """sqrt(1/(N·K) Σ (student - teacher)²), in units of the numbers."""
    difference_NK = student_NK.astype(np.float64) - teacher_NK.astype(np.float64)
    return float(np.sqrt(np.square(difference_NK).mean()))


def pearson(student_NK: Array, teacher_NK: Array) -> float:
    """Pearson's correlation over texts, the mean over K outputs; 0 for an output of which one side
    gives the same number for all texts."""
    outputs = zip(student_NK.T, teacher_NK.T, strict=True)
    return float(np.mean([_correlation(*pair) for pair in outputs]))


def _correlation(student_N: Array, teacher_N: Array) -> float:
    if np.ptp(student_N) == 0 or np.ptp(teacher_N) == 0:
        return 0.0
    return float(np.corrcoef(student_N.astype(np.float64), teacher_N.astype(np.float64))[0, 1])


def cosines(student_NH: Array, teacher_NH: Array) -> Array:
    """Cosine [N] of each text's two embeddings; 0 where one of them is zero."""
    return pair_scores(student_NH, teacher_NH)


def linear_cka(student_ND: Array, teacher_NH: Array) -> float:
    """Linear centred kernel alignment of two representations of the same texts, 0 to 1, whatever
    their widths; unchanged by rotations and by one factor for all numbers.

    ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖), Frobenius norms, X and Y centred over texts. 0 if one of them is the
    same for all texts; 1 for any two texts that differ on both sides: it says something of many
    texts only.
    Source: Kornblith et al., arXiv 1905.00414, section 3 (the biased estimator)."""
    if not (np.ptp(student_ND, axis=0).any() and np.ptp(teacher_NH, axis=0).any()):
        return 0.0
    student_ND, teacher_NH = (
        each.astype(np.float64) - each.astype(np.float64).mean(axis=0)
        for each in (student_ND, teacher_NH)
    )
    if len(student_ND) < max(student_ND.shape[1], teacher_NH.shape[1]):
        student, teacher = student_ND @ student_ND.T, teacher_NH @ teacher_NH.T
        shared = float((student * teacher).sum())
    else:
        student, teacher = student_ND.T @ student_ND, teacher_NH.T @ teacher_NH
        shared = float(np.square(student_ND.T @ teacher_NH).sum())
    return shared / float(np.linalg.norm(student) * np.linalg.norm(teacher))


def hacking_begins(teacher: Sequence[float], truth: Sequence[float]) -> int | None:
    """Index of the epoch from which a student comes nearer to its teacher and goes farther from the
    truth: that of the least distance to the truth, if the last epoch is nearer to the teacher and
    farther from the truth than that one; else None. Both are distances by epoch.

    Source: teacher hacking, arXiv 2502.02671: the proxy (distance to the teacher) improves while
    the golden metric (distance to the truth) worsens."""
    if len(truth) < 2:
        return None
    best = int(np.argmin(truth))
    hacks = truth[-1] > truth[best] and teacher[-1] < teacher[best]
    return best if hacks else None
