"""Draws: what they give on average is the divergence itself, checked on all samples there are."""

import itertools

import numpy as np
import pytest
import torch
from armada.stages.distill.token_loss.answers import Answers, DenseAnswers, SampledAnswers
from armada.stages.distill.token_loss.loss import Tokens, token_loss
from token_loss_reference import DIVERGENCES, SETTINGS, Case

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def value_and_slope(answers: Answers, name: str, temperature: float) -> tuple[float, torch.Tensor]:
    """At one position, of a vocabulary of three words."""
    random = np.random.default_rng(4)
    hidden = torch.from_numpy(random.normal(size=(1, 2))).requires_grad_()
    weight = torch.from_numpy(random.normal(size=(3, 2)))
    tokens = Tokens(hidden, weight, torch.tensor([-100]))
    terms = token_loss(tokens, answers, SETTINGS[name], alpha=1.0, temperature=temperature)
    (slope,) = torch.autograd.grad(terms.total, hidden)
    return terms.total.item(), slope


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_mean_over_all_pairs_of_draws_is_the_divergence(name: str) -> None:
    mean, mean_slope = 0.0, torch.zeros(1, 2, dtype=torch.float64)
    for pair in itertools.product(range(3), repeat=2):
        ids = torch.tensor([pair])
        value, slope = value_and_slope(SampledAnswers(ids, P.log()[ids]), name, 1.0)
        chance = P[list(pair)].prod()
        mean, mean_slope = mean + chance * value, mean_slope + chance * slope
    exact, exact_slope = value_and_slope(DenseAnswers(P.log()[None]), name, 1.0)
    torch.testing.assert_close(mean_slope, exact_slope, rtol=1e-12, atol=1e-14)
    if name != "forward_kl":  # whose value is of the frequencies, not of the teacher
        assert mean == pytest.approx(exact, rel=1e-12)


def test_forward_kl_needs_no_probabilities() -> None:
    ids = torch.tensor([[0, 2, 2]])
    kept = value_and_slope(SampledAnswers(ids, P.log()[ids]), "forward_kl", 1.0)
    value, slope = value_and_slope(SampledAnswers(ids, None), "forward_kl", 1.0)
    assert value == pytest.approx(kept[0], rel=1e-12)
    torch.testing.assert_close(slope, kept[1])


@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.5])
def test_draws_as_frequent_as_the_teacher_says_give_its_divergence(temperature: float) -> None:
    """What self-normalised weights converge to: here, where frequencies are exact, they are it."""
    ids = torch.tensor([[0, 1, 2, 0, 1, 0, 2, 0, 1, 0]])
    found, slope = value_and_slope(SampledAnswers(ids, P.log()[ids]), "forward_kl", temperature)
    exact, exact_slope = value_and_slope(DenseAnswers(P.log()[None]), "forward_kl", temperature)
    assert found == pytest.approx(exact, rel=1e-12)
    torch.testing.assert_close(slope, exact_slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(set(DIVERGENCES) - {"forward_kl"}))
def test_what_is_taken_off_lowers_the_variance_near_the_teacher(name: str) -> None:
    """Of the ways the estimate can be written, the one with h'(1)·(r - 1) taken off is steadier."""
    from token_loss_reference import H_SLOPE_AT_ONE, H

    case = Case(words=20, positions=1, teacher_words=20)
    p = np.exp(case.log_p[0])
    r = np.exp(0.05 * case.random.normal(size=20))
    r /= (p * r).sum()
    plain = H[name](r)
    steadier = plain - H_SLOPE_AT_ONE[name] * (r - 1)
    spreads = [(p * (h - (p * h).sum()) ** 2).sum() for h in (plain, steadier)]
    if H_SLOPE_AT_ONE[name] == 0:
        assert spreads[0] == spreads[1]
    else:
        assert spreads[1] < spreads[0] / 100
