"""How near a language model is to its teachers on given tokens, from the logits that its cross
entropy makes anyway: no second pass, and no matrix [P, V].

agreement          share of tokens at which both have the same most probable one
teacher_kl         KL(teacher ‖ student) in nats, a mean over tokens; over the k listed tokens and
                   one more outcome for all others where the cache has the top k: not above the
                   exact one, and equal to it where all tokens are listed
ece                expected calibration error of the student's most probable tokens, and
teacher_accuracy,  how often the teacher's most probable token is that of the corpus, and how well
teacher_ece        its probability tells so

All are at temperature 1, over labelled tokens with a cached prediction; `ece` over all labelled
ones. Tokens without a label may have any logits here: the loss leaves theirs out.
Shapes: P predicted tokens, C those of a chunk, V tokens of the vocabulary, k listed ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..calibration import CalibrationSums
from ..losses import MISSING_LABEL
from ..teacher_answers import prefixes
from ..token_loss.answers import Answers, DenseAnswers, SparseAnswers, TokenAnswers
from ..token_loss.divergences import forward_kl, soften_dense, soften_sparse

NAMES = ("agreement", "teacher_kl")
"""The measures of a teacher that an epoch can be chosen by."""

STUDENT_NAMES = ("ece",)
"""The measures of the student alone, beside them."""

Figures = dict[str, float]
_Numbers = npt.NDArray[Any]


@dataclass(slots=True)
class TeacherSums:
    """Sums over the tokens with a prediction of one teacher."""

    tokens: int = 0
    same: int = 0
    nats: float = 0.0
    calibration: CalibrationSums | None = None

    def figures(self) -> Figures:
        """Means over tokens; nothing where there are none."""
        if not self.tokens:
            return {}
        found = {"agreement": self.same / self.tokens, "teacher_kl": self.nats / self.tokens}
        if self.calibration is None:
            return found
        accuracy, ece = self.calibration.accuracy, self.calibration.by_bin.error
        return found | {"teacher_accuracy": accuracy, "teacher_ece": ece}


@dataclass(slots=True)
class MeasureSums:
    """Sums of the student's own predictions, and of each teacher by the prefix of its figures."""

    calibration: CalibrationSums | None = None
    teachers: dict[str, TeacherSums] = field(default_factory=dict)

    def add(self, seen: Mapping[str, Tensor]) -> None:
        """Add what an observer has seen of a batch (`TokenObserver.seen`)."""
        numbers = {name: each.cpu().numpy() for name, each in seen.items()}
        given = numbers["labelled"]
        self.calibration = _sum(
            self.calibration, numbers["confidence"][given], numbers["right"][given]
        )
        for name in [each.removesuffix(" answered") for each in seen if each.endswith(" answered")]:
            of = {part: numbers[f"{name} {part}"] for part in _PARTS}
            answered, sums = of["answered"], self.teachers.setdefault(name, TeacherSums())
            sums.tokens += int(answered.sum())
            sums.same += int(of["same"][answered].sum())
            sums.nats += float(of["nats"][answered].astype(np.float64).sum())
            scored = answered & given
            sums.calibration = _sum(sums.calibration, of["confidence"][scored], of["right"][scored])

    def figures(self) -> Figures:
        """The figures of the student and of each teacher, with its name if there are several."""
        own = {} if self.calibration is None else {"ece": self.calibration.by_bin.error}
        first = prefixes(list(self.teachers))
        return own | {
            f"{first[name]}{figure}": value
            for name, sums in self.teachers.items()
            for figure, value in sums.figures().items()
        }


_PARTS = ("answered", "same", "nats", "confidence", "right")


def _sum(
    sums: CalibrationSums | None, confidence: _Numbers, right: _Numbers
) -> CalibrationSums | None:
    if not len(confidence):
        return sums
    # Rounding may make a probability more than 1.
    found = CalibrationSums.of(np.minimum(confidence.astype(np.float64), 1.0), right)
    return found if sums is None else sums + found


class TokenObserver:
    """Looks at each chunk's logits [C, V] before the loss uses them up."""

    def __init__(self, labels_P: Tensor, teachers: Mapping[str, TokenAnswers]) -> None:
        self._labels_P, self._teachers = labels_P, teachers
        self._parts: dict[str, list[Tensor]] = {}

    def __call__(self, logits_CV: Tensor, rows: slice) -> None:
        """Take the logits of some of the P tokens; they are left as they are."""
        labels_C = self._labels_P[rows]
        labelled_C = labels_C != MISSING_LABEL
        most_C, ids_C = logits_CV.max(dim=1)
        self._note("labelled", labelled_C)
        self._note("confidence", (most_C - logits_CV.logsumexp(dim=1)).exp())
        self._note("right", ids_C == labels_C)
        for name, teacher in self._teachers.items():
            answers, answered_C = teacher.answers.rows(rows), _answered(teacher, rows, labels_C)
            top = most_probable(answers)
            answered_C = answered_C & labelled_C & (top.log_probs_C > -torch.inf)
            self._note(f"{name} answered", answered_C)
            self._note(f"{name} same", top.ids_C == ids_C)
            self._note(f"{name} nats", kl_to_teacher(logits_CV, answers, answered_C))
            self._note(f"{name} confidence", top.log_probs_C.exp())
            self._note(f"{name} right", top.ids_C == labels_C)

    @property
    def seen(self) -> dict[str, Tensor]:
        """For all tokens [P]: whether they are labelled, the student's confidence, whether it was
        right; and, after the name of each teacher and a space, the same with `answered`, `same` and
        `nats`."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}

    def _note(self, name: str, values_C: Tensor) -> None:
        self._parts.setdefault(name, []).append(values_C)


def _answered(teacher: TokenAnswers, rows: slice, like_C: Tensor) -> Tensor:
    if teacher.answered_P is None:
        return torch.ones_like(like_C, dtype=torch.bool)
    return teacher.answered_P[rows]


@dataclass(frozen=True, slots=True)
class MostProbable:
    """The most probable token of each prediction, and its log-probability; of equal ones the first
    that is listed."""

    ids_C: Tensor
    log_probs_C: Tensor


def most_probable(answers: Answers) -> MostProbable:
    """A teacher's most probable tokens; of samples, none is known."""
    if isinstance(answers, DenseAnswers):
        log_probs_C, ids_C = answers.log_probs_PV.max(dim=1)
        return MostProbable(ids_C, log_probs_C)
    assert isinstance(answers, SparseAnswers)
    log_probs_C1, at_C1 = answers.log_probs_Pk.max(dim=1, keepdim=True)
    ids_C = answers.ids_Pk.gather(1, at_C1).squeeze(1).long()
    return MostProbable(ids_C, log_probs_C1.squeeze(1))


def kl_to_teacher(logits_CV: Tensor, answers: Answers, answered_C: Tensor) -> Tensor:
    """KL(p ‖ q) [C] in nats, p a teacher's prediction and q = softmax(logits), both at temperature
    1: as `token_loss` computes it, whose sums are exact for small masses. Anything in rows without
    a prediction."""
    own_CV, spare_CV = logits_CV.clone(), torch.empty_like(logits_CV)
    told = (own_CV, spare_CV, answers, answered_C, torch.zeros_like(answered_C, dtype=torch.int64))
    if isinstance(answers, DenseAnswers):
        found = soften_dense(*told, compare=_kl, temperature=1.0)
    else:
        found = soften_sparse(*told, compare=_kl)
    return found.divergence_C


def _kl(log_p: Tensor, log_q: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Forward KL, whatever the tokens of the corpus are."""
    return forward_kl(log_p, log_q)
