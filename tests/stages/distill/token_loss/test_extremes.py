"""Numbers at the edge: nothing is NaN, gradients are finite, and small tails keep their digits."""

import math

import pytest
import torch
from armada.stages.distill.token_loss.answers import (
    Answers,
    DenseAnswers,
    SampledAnswers,
    SparseAnswers,
)
from armada.stages.distill.token_loss.loss import Tokens, token_loss
from token_loss_reference import DIVERGENCES, SETTINGS

INF = math.inf
V = 6
LOGITS = {
    "flat": [0.0] * V,
    "sure": [200.0, 0, 0, 0, 0, 0],
    "sure of another": [0, 0, 0, 0, 300.0, -300.0],
    "far away": [1e4, -1e4, 3e4, 0, 1, 2],
}
ONE_HOT = torch.tensor([[0.0] + [-INF] * (V - 1)])
ANSWERS: dict[str, Answers] = {
    "one-hot, with a tail of nothing": SparseAnswers(
        torch.tensor([[0, 1]]), torch.tensor([[0.0, -INF]]), torch.tensor([-INF])
    ),
    "one-hot, renormalised": SparseAnswers(
        torch.tensor([[0, 1]]), torch.tensor([[0.0, -INF]]), None
    ),
    "nothing but a tail": SparseAnswers(
        torch.tensor([[99, -1]]), torch.tensor([[-INF, -INF]]), torch.tensor([0.0])
    ),
    "nothing at all": SparseAnswers(torch.tensor([[99, -1]]), torch.tensor([[-INF, -INF]]), None),
    "hardly any tail": SparseAnswers(
        torch.tensor([[4, 2]]), torch.tensor([[-1e-7, -50.0]]), torch.tensor([-90.0])
    ),
    "all words": SparseAnswers(
        torch.arange(V)[None], torch.tensor([[0.0] * V]).log_softmax(1), torch.tensor([-INF])
    ),
    "dense one-hot": DenseAnswers(ONE_HOT),
    "dense, fewer words": DenseAnswers(ONE_HOT[:, :3]),
    "samples of one word": SampledAnswers(torch.tensor([[0, 0, 0]]), torch.zeros(1, 3)),
    "samples that hardly ever come": SampledAnswers(
        torch.tensor([[0, 4]]), torch.tensor([[-200.0, -INF]])
    ),
}


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("logits", LOGITS)
def test_everything_stays_finite(logits: str, kind: str, name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        hidden = torch.eye(1, dtype=dtype).requires_grad_()
        weight = torch.tensor(LOGITS[logits], dtype=dtype)[:, None].requires_grad_()
        tokens = Tokens(hidden, weight, torch.tensor([1]))
        terms = token_loss(tokens, ANSWERS[kind], SETTINGS[name], alpha=0.5, temperature=1.0)
        terms.total.backward()
        for found in (terms.total, terms.distillation, hidden.grad, weight.grad):
            assert found is not None
            assert found.isfinite().all()
        assert terms.distillation > -1e-6


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_tail_of_a_millionth_of_a_millionth_keeps_its_digits(name: str) -> None:
    """In float32, where 1 minus what the listed words have is 0 or 1e-7: the slopes of the words of
    the tail, which nothing else moves, are right to five digits."""
    logits = [30.0, 29.0, 2.0, 1.5, 1.0, 0.5]
    found = []
    for dtype in (torch.float32, torch.float64):
        hidden = torch.ones(1, 1, dtype=dtype)
        weight = torch.tensor(logits, dtype=dtype)[:, None].requires_grad_()
        log_p = torch.tensor([[0.5, 0.4, 0.1]], dtype=torch.float64).log()
        answers = SparseAnswers(torch.tensor([[0, 1]]), log_p[:, :2], log_p[:, 2])
        tokens = Tokens(hidden, weight, torch.tensor([-100]))
        terms = token_loss(tokens, answers, SETTINGS[name], alpha=1.0, temperature=1.0)
        terms.total.backward()
        assert weight.grad is not None
        found.append((terms.total.double(), weight.grad[2:].double()))
    assert 0 < found[1][1].abs().max() < (1e-9 if name in SMALL else 1.0)
    # Logits of 30 have 2e-6 between them and the next float32.
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=2e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=0)


SMALL = {"reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"}
"""Divergences in which a mass that is hardly there moves hardly anything."""
