"""Answers that give every token's probability: the divergence over the whole vocabulary.

Costs about five matrices [C, V] of a chunk beside the logits and the softmax, none of [P, V].
"""

import torch.nn.functional as F
from torch import Tensor

from .answers import Answers, DenseAnswers
from .divergences import LEAST, Measure
from .softened import Softened, softmax


def soften_dense(
    logits_CV: Tensor,
    spare_CV: Tensor,
    answers: Answers,
    answered_C: Tensor,
    *,
    measure: Measure,
    temperature: float,
) -> Softened:
    """The divergence from softmax(log p / T), over V tokens."""
    assert isinstance(answers, DenseAnswers)
    log_sum_C1 = softmax(logits_CV, spare_CV)
    log_p_CV = tempered(answers, answered_C, logits_CV, temperature)
    log_p_CV = padded(log_p_CV, logits_CV.shape[1])
    parts_CV, slopes_CV = measure(log_p_CV, logits_CV.sub_(log_sum_C1))
    return Softened(
        divergence_C=parts_CV.sum(dim=1),
        log_sum_C1=log_sum_C1,
        shares_CV=spare_CV,
        rest_C1=log_sum_C1.new_ones(log_sum_C1.shape),
        slope_C1=-slopes_CV.sum(dim=1, keepdim=True),
        push=slopes_CV,
    )


def tempered(answers: DenseAnswers, answered_C: Tensor, like: Tensor, temperature: float) -> Tensor:
    """log_softmax(log p / T), [C, V'], finite: `LEAST` for a probability of 0, and zeros in rows
    without answers."""
    log_p = answers.log_probs_PV.to(like.dtype)
    log_p = (log_p if temperature == 1 else log_p / temperature).log_softmax(dim=1)
    return log_p.clamp_(min=LEAST).masked_fill_(~answered_C[:, None], 0)


def padded(log_p: Tensor, vocab_size: int) -> Tensor:
    """With probability 0 for the tokens that the teacher lacks."""
    lacking = vocab_size - log_p.shape[1]
    return F.pad(log_p, (0, lacking), value=LEAST) if lacking > 0 else log_p
