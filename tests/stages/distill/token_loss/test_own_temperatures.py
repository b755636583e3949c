"""Predictions with a temperature for each position: against NumPy, and against one for all."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.distill.token_loss.answers import Answers, DenseAnswers, SparseAnswers
from armada.stages.distill.token_loss.loss import token_loss
from armada.stages.distill.token_loss.settings import TokenLossSettings
from token_loss_reference import SETTINGS, Case, gradients, log_softmax, of_row

ALPHA = 0.4
TEMPERATURES = np.array([1.0, 3.0, 1.5, 3.0, 1.0, 1.5, 3.0, 1.0, 3.0])
each_kind = pytest.mark.parametrize("kind", ["tail", "renormalised", "dense"])


def _answers(case: Case, kind: str, temperatures: np.ndarray = TEMPERATURES) -> Answers:
    """Each position's at its own temperature; of one without a prediction it may be anything."""
    own = torch.from_numpy(np.where(case.answered, temperatures[: case.positions], 0.0))
    if kind == "dense":
        return DenseAnswers(torch.from_numpy(case.log_p), own)
    parts = [case.answers(kind, float(t)) for t in temperatures[: case.positions]]
    rows = [part.rows(slice(n, n + 1)) for n, part in enumerate(parts)]
    assert all(isinstance(each, SparseAnswers) for each in rows)
    tail = None if kind == "renormalised" else torch.cat([each.log_tail_P for each in rows])
    ids, log_probs = (torch.cat([getattr(r, n) for r in rows]) for n in ("ids_Pk", "log_probs_Pk"))
    return SparseAnswers(ids, log_probs, tail, own)


def _loss(case: Case, answers: Answers, settings: Any, temperature: float = 1.0) -> Any:
    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    how = {"alpha": ALPHA, "temperature": temperature, "chunk": 2}
    terms = token_loss(case.tokens(*inputs), answers, settings, **how)
    return terms, torch.autograd.grad(terms.total, inputs)


@each_kind
@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_each_position_is_compared_at_its_own(kind: str, name: str, softcap: float | None) -> None:
    """T² included, position by position; cross entropy stays at 1."""
    case = Case(positions=9, teacher_words=8, listed=3, scale=0.8, softcap=softcap)
    answers = _answers(case, kind)
    task, _ = case.reference(kind, name, 1.0)

    def divergence(inputs: list[np.ndarray]) -> Any:
        z = 0.8 * (inputs[0] @ inputs[1].T + inputs[2])
        z = z if softcap is None else softcap * np.tanh(z / softcap)
        total: Any = 0
        for row in np.flatnonzero(case.answered):
            own = float(TEMPERATURES[row])
            q = np.exp(log_softmax(z[row] / own))
            total += own**2 * of_row(answers, row, q, name, own)
        return total / case.answered.sum()

    def whole(inputs: list[np.ndarray]) -> Any:
        return ALPHA * divergence(inputs) + (1 - ALPHA) * task(inputs)

    terms, found = _loss(case, answers, SETTINGS[name])
    assert terms.distillation.item() == pytest.approx(divergence(case.inputs), rel=1e-10)
    assert terms.total.item() == pytest.approx(whole(case.inputs), rel=1e-10)
    for one, other in zip(found, gradients(whole, case.inputs), strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-10, atol=1e-12)


@each_kind
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equal_ones_are_one_for_all(kind: str, temperature: float) -> None:
    case = Case(positions=9)
    settings = TokenLossSettings(divergence="dkd", token_weights="entropy")
    own = _answers(case, kind, np.full(9, temperature))
    found, expected = (
        _loss(case, own, settings),
        _loss(case, case.answers(kind, temperature), settings, temperature),
    )
    torch.testing.assert_close(found[0].total, expected[0].total, rtol=1e-13, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-15)


@each_kind
def test_gradcheck(kind: str) -> None:
    case = Case(positions=4, width=2, words=5, listed=2, teacher_words=4, softcap=2.0)
    answers = _answers(case, kind)

    def total(*inputs: torch.Tensor) -> torch.Tensor:
        how = {"alpha": ALPHA, "temperature": 1.0, "chunk": 3}
        return token_loss(case.tokens(*inputs), answers, SETTINGS["reverse_kl"], **how).total

    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    assert torch.autograd.gradcheck(total, inputs)


@each_kind
def test_bfloat16_students(kind: str) -> None:
    """Values in float32, gradients rounded once."""
    case = Case(positions=9, width=16, words=40, teacher_words=40)
    answers = _answers(case, kind)
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        inputs = [
            torch.from_numpy(array).bfloat16().to(dtype).requires_grad_() for array in case.inputs
        ]
        how = {"alpha": ALPHA, "temperature": 1.0}
        given = replace(answers, temperatures_P=answers.temperatures_P.float())
        total = token_loss(case.tokens(*inputs), given, SETTINGS["jsd"], **how).total
        results.append([total, *torch.autograd.grad(total, inputs)])
    found, exact = results
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-6, atol=0)
    for one, other in zip(found[1:], exact[1:], strict=True):
        assert one.dtype == torch.bfloat16
        rounding = (other.bfloat16() - other).norm()
        assert (one - other).norm() < 1.05 * rounding
