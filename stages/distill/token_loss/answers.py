"""A teacher's predictions of the next token at P positions, in the forms of caches.

P positions, k ids that the cache lists, K samples, V' rows of the teacher's vocabulary. Ids are
rows of the student's vocabulary. Logarithms are natural. Values in rows that the caller masks are
never used, NaN and ids out of range included.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ....cache_schemas.errors import JobError
from .settings import TokenLossSettings


@dataclass(frozen=True, slots=True)
class SparseAnswers:
    """The probabilities of k tokens at the loss's temperature, and of all others together.

    ids_Pk        int32 or int64, no id twice in a row
    log_probs_Pk  -inf marks an entry that is absent: its id is not looked at, and if it means a
                  token, that token is one of the others
    log_tail_P    the logarithm of what the others have, one more outcome on both sides; None: both
                  sides are renormalised over the tokens that are present
    temperatures_P  the temperature that each position is at; None: all at that of the loss
    A row without a present entry counts as one where student and teacher agree.
    """

    ids_Pk: Tensor
    log_probs_Pk: Tensor
    log_tail_P: Tensor | None
    temperatures_P: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.ids_Pk.shape == self.log_probs_Pk.shape, "one id per probability"
        assert self.log_tail_P is None or self.log_tail_P.shape == self.ids_Pk.shape[:1]

    def __len__(self) -> int:
        return len(self.ids_Pk)

    def rows(self, rows: slice) -> Self:
        """The predictions at some of the positions."""
        tail, temperatures = _rows(self.log_tail_P, rows), _rows(self.temperatures_P, rows)
        return type(self)(self.ids_Pk[rows], self.log_probs_Pk[rows], tail, temperatures)


@dataclass(frozen=True, slots=True)
class SampledAnswers:
    """K tokens drawn with replacement from the teacher at temperature 1; a token may occur again.

    ids_PK        int32 or int64
    log_probs_PK  the teacher's log-probability of each sampled token, if it was kept
    Source: Random Sampling Knowledge Distillation, arXiv 2503.16870.
    """

    ids_PK: Tensor
    log_probs_PK: Tensor | None

    def __post_init__(self) -> None:
        assert self.log_probs_PK is None or self.ids_PK.shape == self.log_probs_PK.shape

    def __len__(self) -> int:
        return len(self.ids_PK)

    def rows(self, rows: slice) -> Self:
        """The predictions at some of the positions."""
        return type(self)(self.ids_PK[rows], _rows(self.log_probs_PK, rows))


@dataclass(frozen=True, slots=True)
class DenseAnswers:
    """The logarithm of every token's probability at temperature 1, [P, V'], V' <= V; and, if not
    all positions are compared at the temperature of the loss, that of each.

    Rows of the student's vocabulary that the teacher lacks, as where one of them is padded, have
    probability 0."""

    log_probs_PV: Tensor
    temperatures_P: Tensor | None = None

    def __len__(self) -> int:
        return len(self.log_probs_PV)

    def rows(self, rows: slice) -> Self:
        """The predictions at some of the positions."""
        return type(self)(self.log_probs_PV[rows], _rows(self.temperatures_P, rows))


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


Answers = SparseAnswers | SampledAnswers | DenseAnswers


@dataclass(frozen=True, slots=True)
class TokenAnswers:
    """One teacher's predictions at P positions; `answered_P`, bool: where there are any; None:
    everywhere."""

    answers: Answers
    answered_P: Tensor | None = None


def check_samples(settings: TokenLossSettings, temperature: float, has_log_probs: bool) -> None:
    """Raises JobError if samples cannot estimate this divergence at this temperature.

    Jobs that read samples are checked by it before a model loads."""
    divergence = settings.divergence
    if divergence in ("taid", "dkd", "atkd", "self_evolution"):
        raise JobError(
            f"divergence {divergence} needs all of a distribution, and samples are a part of it; "
            "use another divergence, or cache top_k or dense"
        )
    if settings.token_weights != "uniform":
        raise JobError(
            f"token_weights {settings.token_weights} needs all of a distribution, and samples are "
            "a part of it; leave it out, or cache top_k or dense"
        )
    if divergence != "forward_kl" and temperature != 1:
        raise JobError(
            f"divergence {divergence} at temperature {temperature:g} cannot be estimated from "
            "samples taken at temperature 1; use temperature 1, or forward_kl"
        )
    if has_log_probs or (divergence == "forward_kl" and temperature == 1):
        return
    raise JobError(
        f"divergence {divergence} at temperature {temperature:g} needs the probabilities of the "
        "sampled tokens, which are not cached; use forward_kl at temperature 1, or cache them"
    )


def temperatures_of(answers: Answers, answered_P: Tensor) -> Tensor | None:
    """The temperature of each position, [P, 1], 1 where there is no prediction; None: all have that
    of the loss."""
    if isinstance(answers, SampledAnswers) or answers.temperatures_P is None:
        return None
    return answers.temperatures_P.where(answered_P, 1)[:, None]


def check_vocabulary(answers: Answers, rows: int) -> None:
    """Raises JobError if the teacher knows more tokens than the student has rows for."""
    if isinstance(answers, DenseAnswers) and answers.log_probs_PV.shape[1] > rows:
        raise JobError(
            f"the teacher's predictions have {answers.log_probs_PV.shape[1]} tokens, the student's "
            f"vocabulary {rows}; use a teacher with the student's vocabulary, or uld"
        )


@dataclass(frozen=True, slots=True)
class Entries:
    """Sparse predictions ready for computation: C positions, every number finite.

    Absent entries repeat the row's first present id, with weight 0."""

    ids_Ck: Tensor
    present_Ck: Tensor
    log_probs_Ck: Tensor


def entries(answers: SparseAnswers, answered_C: Tensor, least: float) -> Entries:
    """The listed tokens with absent ones and unanswered rows made harmless: such a row lists one
    token, id 0 or its first one, so that the sum over the vocabulary stays right."""
    log_probs_Ck = answers.log_probs_Pk
    said_Ck = answered_C[:, None] & (log_probs_Ck > -torch.inf)
    first_C1 = said_Ck.to(torch.uint8).argmax(dim=1, keepdim=True)
    none_C1 = ~said_Ck.any(dim=1, keepdim=True)
    first_id_C1 = answers.ids_Pk.gather(1, first_C1).masked_fill(none_C1, 0)
    ids_Ck = torch.where(said_Ck, answers.ids_Pk, first_id_C1)
    present_Ck = said_Ck.scatter(1, first_C1, True)
    return Entries(ids_Ck.long(), present_Ck, torch.where(said_Ck, log_probs_Ck, least))
