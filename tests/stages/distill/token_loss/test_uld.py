"""Universal logit distillation against its formula in NumPy."""

import dataclasses

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.stages.distill.token_loss.answers import Answers, DenseAnswers, SparseAnswers
from armada.stages.distill.token_loss.loss import TokenTerms
from armada.stages.distill.token_loss.uld import uld_loss
from token_loss_reference import Case, gradients, log_softmax, size

ALPHA = 0.6


def ranked(x: np.ndarray) -> np.ndarray:
    return x[np.argsort(-x.real)]


def distance(answers: Answers, row: int, q: np.ndarray) -> complex:
    """Of the formula, at one position."""
    q = ranked(q)
    if isinstance(answers, DenseAnswers):
        p = ranked(np.exp(answers.log_probs_PV[row].numpy()))
        width = max(len(p), len(q))
        padded = [np.concatenate([each, np.zeros(width - len(each))]) for each in (p, q)]
        return size(padded[0] - padded[1]).sum()
    assert isinstance(answers, SparseAnswers)
    assert answers.log_tail_P is not None
    p = ranked(np.exp(answers.log_probs_Pk[row].numpy()))
    k = int((p > 0).sum())
    tails = np.exp(answers.log_tail_P[row].numpy()) - q[k:].sum()
    return size(p[:k] - q[:k]).sum() + size(np.array(tails))


def loss(case: Case, answers: Answers, **how: int) -> tuple[TokenTerms, tuple[torch.Tensor, ...]]:
    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    terms = uld_loss(case.tokens(*inputs), answers, alpha=ALPHA, **how)
    return terms, torch.autograd.grad(terms.total, inputs)


@pytest.mark.parametrize("teacher_words", [5, 8, 11])
@pytest.mark.parametrize("kind", ["tail", "dense"])
def test_terms_and_gradients_are_those_of_the_formula(kind: str, teacher_words: int) -> None:
    case = Case(teacher_words=teacher_words)
    answers = case.answers(kind, 1.0)
    terms, found = loss(case, answers, chunk=2)
    task, _ = case.reference("dense", "forward_kl", 1.0)

    def total(inputs: list[np.ndarray]) -> complex:
        q = np.exp(log_softmax(inputs[0] @ inputs[1].T + inputs[2]))
        rows = np.flatnonzero(case.answered)
        distances = sum(distance(answers, row, q[row]) for row in rows) / len(rows)
        return ALPHA * distances + (1 - ALPHA) * task(inputs)

    assert terms.total.item() == pytest.approx(total(case.inputs).real, rel=1e-10)
    for one, other in zip(found, gradients(total, case.inputs), strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-10, atol=1e-12)


def test_ranks_and_a_tail_are_a_lower_bound_that_grows_with_them() -> None:
    case = Case(positions=20, words=30, teacher_words=30)
    log_p, ids = torch.from_numpy(case.log_p).sort(dim=1, descending=True)
    found = []
    for k in (1, 3, 10, 25, 29):
        tail = log_p[:, k:].logsumexp(dim=1)
        found.append(loss(case, SparseAnswers(ids[:, :k], log_p[:, :k], tail))[0].distillation)
    exact = loss(case, DenseAnswers(log_p))[0].distillation
    bounds = torch.stack(found)
    assert (bounds.diff() > 0).all()
    assert bounds[0] < 0.9 * exact
    torch.testing.assert_close(bounds[-1], exact)  # the last rank is a tail of one word


def test_ids_are_not_looked_at() -> None:
    case = Case()
    answers = case.answers("tail", 1.0)
    assert isinstance(answers, SparseAnswers)
    elsewhere = dataclasses.replace(answers, ids_Pk=answers.ids_Pk + 10**6)
    assert loss(case, answers)[0].total == loss(case, elsewhere)[0].total


@pytest.mark.parametrize("kind", ["drawn", "renormalised"])
def test_answers_without_the_mass_of_all_words_are_refused(kind: str) -> None:
    case = Case()
    with pytest.raises(JobError, match="needs sorted probabilities"):
        loss(case, case.answers(kind, 1.0))


def test_more_listed_words_than_the_student_has_are_refused() -> None:
    case = Case(words=3, teacher_words=8)
    case.labels %= 3
    with pytest.raises(JobError, match="list 4 tokens, the student's vocabulary has 3"):
        loss(case, case.answers("tail", 1.0))
