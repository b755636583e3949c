"""Losses of two responses to each prompt, against numbers worked by hand and NumPy in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada.stages.distill.language.pairs import PairSums, response_log_probs
from armada.stages.distill.losses import MISSING_LABEL
from armada.stages.distill.losses.preferences import (
    PREFERENCE_LOSSES,
    log_ratios,
    ranking_loss,
    weighted_mean,
)
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Objective, ResponsePairs, Sizes, StudentSide
from armada.stages.distill.token_loss.loss import Tokens
from armada.stages.distill.token_loss.own_tokens import token_log_probs
from armada.stages.language.logits import LogitTransform

SIZES = Sizes(4, 1, False, None)
LOG_PROBS = torch.tensor([[-4.0, -6.0], [-9.0, -5.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-5.0, -5.0], [-8.0, -6.0]], dtype=torch.float64)
COUNTS = torch.tensor([[2.0, 4.0], [3.0, 2.0]], dtype=torch.float64)


def made(name: str, **options: Any) -> Objective:
    kind = OBJECTIVES.load(name)
    objective: Objective = kind(kind.Options(**options), SIZES)
    objective.sources = ("reference",)
    return objective


def terms(name: str, pairs: ResponsePairs, **options: Any) -> dict[str, float]:
    side = StudentSide(pairs=pairs)
    found = made(name, **options).of_sources(side, {"reference": REFERENCE}, None)
    return {term: float(value) for term, value in found.items()}


def test_worked_by_hand() -> None:
    """Log-ratios 1 and -1 of the first pair, -1 and 1 of the second: margins 2 and -2."""
    found = terms("dpo", ResponsePairs(LOG_PROBS, COUNTS), beta=0.5)
    # log(1 + e^-1) and log(1 + e): 0.31326 and 1.31326
    assert found["total"] == pytest.approx((0.3132616875 + 1.3132616875) / 2)
    assert (found["accuracy"], found["chosen_reward"], found["rejected_reward"]) == (0.5, 0, 0)
    assert terms("dpo", ResponsePairs(LOG_PROBS, COUNTS), beta=1.0, preference_loss="hinge")[
        "total"
    ] == pytest.approx((0 + 3) / 2)
    assert terms("dpo", ResponsePairs(LOG_PROBS, COUNTS), beta=0.5, preference_loss="ipo")[
        "total"
    ] == pytest.approx((1 + 9) / 2)
    # per token: -2 and -1.5, -3 and -2.5: both differ by -0.5; cross entropy 13 nats of 5 tokens
    found = terms("plad", ResponsePairs(LOG_PROBS, COUNTS), margin=0.25, beta=2.0, sft_weight=0.5)
    assert found["preference"] == pytest.approx(0.75)
    assert found["language"] == pytest.approx(13 / 5)
    assert found["total"] == pytest.approx(1.5 + 1.3)
    assert found["accuracy"] == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_numpy_says_the_same(loss: str, per_token: bool, weighted: bool) -> None:
    draw = np.random.default_rng(0)
    policy, reference = -9 * draw.random((2, 7, 2))
    counts, weights = draw.integers(1, 9, (7, 2)), draw.random(7)
    options = {"beta": 0.3, "preference_loss": loss, "length_normalised": per_token}
    options |= {"label_smoothing": 0.1} if loss == "sigmoid" else {}
    objective = made("dpo", **options, sft_weight=0.7)
    given = torch.from_numpy(weights) if weighted else None
    pairs = ResponsePairs(torch.from_numpy(policy), torch.from_numpy(counts), given)
    sources = {"reference": torch.from_numpy(reference)}
    found = objective.of_sources(StudentSide(pairs=pairs), sources, None)
    ratios = (policy - reference) / (counts if per_token else 1)
    h = ratios[:, 0] - ratios[:, 1]
    losses = {
        "sigmoid": 0.9 * np.log1p(np.exp(-0.3 * h)) + 0.1 * np.log1p(np.exp(0.3 * h)),
        "hinge": np.maximum(0, 1 - 0.3 * h),
        "ipo": (h - 1 / 0.6) ** 2,
    }[loss]
    w = weights if weighted else np.ones(7)
    language = -(w * policy[:, 0]).sum() / (w * counts[:, 0]).sum()
    expected = (w * losses).sum() / w.sum() + 0.7 * language
    assert float(found["total"]) == pytest.approx(expected, rel=1e-12)
    assert float(found["accuracy"]) == (h > 0).mean()
    assert float(found["chosen_reward"]) == pytest.approx(0.3 * ratios[:, 0].mean())


def test_least_and_edges() -> None:
    margins = torch.linspace(-300, 300, 601, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    for loss in PREFERENCE_LOSSES.values():
        assert loss(margins, 0.5, 0.0).isfinite().all()
    assert float(PREFERENCE_LOSSES["sigmoid"](zero, 0.1, 0.0)) == pytest.approx(math.log(2))
    smoothed = PREFERENCE_LOSSES["sigmoid"](margins, 0.5, 0.25)
    # the least where the probability is that of a right label: log(3) / beta
    assert float(margins[smoothed.argmin()]) == pytest.approx(math.log(3) / 0.5, abs=0.5)
    assert float(margins[PREFERENCE_LOSSES["ipo"](margins, 0.5, 0.0).argmin()]) == 1.0
    equal = torch.tensor([[-3.0, -3.0]])
    assert float(ranking_loss(equal, 0.0)) == 0
    assert float(ranking_loss(equal, 1.5)) == 1.5
    no_tokens = log_ratios(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), True)
    assert no_tokens.isfinite().all()
    losses = torch.ones(3)
    assert float(weighted_mean(losses, None, 6.0)) == 0.5
    assert float(weighted_mean(losses, torch.zeros(3), None)) == 0
    assert float(weighted_mean(losses, torch.zeros(3), 0.0)) == 0


def test_the_reference_has_no_gradient() -> None:
    reference = REFERENCE.clone().requires_grad_()
    policy = LOG_PROBS.clone().requires_grad_()
    pairs = ResponsePairs(policy, COUNTS)
    total = made("dpo").of_sources(StudentSide(pairs=pairs), {"reference": reference}, None)
    total["total"].backward()
    assert reference.grad is None
    assert policy.grad is not None
    # -beta σ(-beta h) / B for the preferred ones, and the opposite for the others
    expected = 0.1 * torch.sigmoid(-0.1 * torch.tensor([2.0, -2.0], dtype=torch.float64)) / 2
    torch.testing.assert_close(policy.grad, torch.stack([-expected, expected], dim=1))


# --- log-probabilities of tokens


def head(dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(9, 4), (11, 4), *([(11,)] if bias else [])]
    return tuple(torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes)


TARGETS = torch.tensor([0, 3, 10, MISSING_LABEL, 5, 5, 1, MISSING_LABEL, 2])


@pytest.mark.parametrize(
    "transform", [LogitTransform(), LogitTransform(0.5, 2.0)], ids=["plain", "capped"]
)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_log_probs_of_tokens_are_those_of_all_logits(chunk: int, transform: LogitTransform) -> None:
    inputs = [each.requires_grad_() for each in head(torch.float64, bias=True)]
    hidden, weight, bias = inputs
    tokens = Tokens(hidden, weight, TARGETS, bias, transform=transform)
    found = token_log_probs(tokens, chunk)
    logits = transform.scale * (hidden @ weight.T + bias)
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    given = TARGETS != MISSING_LABEL
    expected = -F.cross_entropy(logits, TARGETS, reduction="none") * given
    torch.testing.assert_close(found, expected)
    due = torch.linspace(-2, 3, len(found), dtype=torch.float64)
    ours = torch.autograd.grad(found, inputs, due)
    for one, other in zip(ours, torch.autograd.grad(expected, inputs, due), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_log_probs_are_right() -> None:
    hidden, weight = (each.requires_grad_() for each in head(torch.float64, bias=False))

    def sums(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        texts = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3])
        return response_log_probs(token_log_probs(Tokens(hidden, weight, TARGETS), 4), texts, 2)

    assert torch.autograd.gradcheck(sums, (hidden, weight))


def test_missing_targets_may_have_any_state() -> None:
    hidden, weight = head(torch.float32, bias=False)
    broken = hidden.masked_fill((TARGETS == MISSING_LABEL)[:, None], math.nan).requires_grad_()
    weight.requires_grad_()
    found = token_log_probs(Tokens(broken, weight, TARGETS))
    assert torch.equal(found, token_log_probs(Tokens(hidden, weight, TARGETS)))
    found.sum().backward()
    for each in (broken, weight):
        assert each.grad is not None
        assert each.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    hidden, weight = (each.to(dtype).requires_grad_() for each in head(torch.float32, bias=False))
    found = token_log_probs(Tokens(hidden, weight, TARGETS))
    assert found.dtype == torch.float32
    (1e-6 * found.sum()).backward()
    assert hidden.grad is not None
    exact = [each.detach().float().requires_grad_() for each in (hidden, weight)]
    expected = token_log_probs(Tokens(*exact, TARGETS))
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(expected.sum(), exact[:1])
    if dtype == torch.bfloat16:  # those of float16 are too small for its range, unless scaled
        torch.testing.assert_close(hidden.grad.float(), 1e-6 * gradient, rtol=0.02, atol=1e-8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = token_log_probs(Tokens(*exact, TARGETS))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, rtol=0.05, atol=0.05)


def test_no_tokens_at_all() -> None:
    hidden, weight = (each.requires_grad_() for each in head(torch.float32, bias=False))
    found = token_log_probs(Tokens(hidden[:0], weight, TARGETS[:0]))
    response_log_probs(found, TARGETS[:0], 1).sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


# --- metrics


def test_metrics_by_hand() -> None:
    sums = PairSums()
    assert sums.figures() == {}
    for rows in (slice(0, 1), slice(1, 2)):
        sums.add(ResponsePairs(LOG_PROBS[rows], COUNTS[rows]), REFERENCE[rows])
    assert sums.figures() == {
        "preference_accuracy": 0.0,
        "preference_margin": -0.5,
        "reward_accuracy": 0.5,
        "reward_margin": 0.0,
        "chosen_reward": 0.0,
        "rejected_reward": 0.0,
    }
    alone = PairSums()
    alone.add(ResponsePairs(LOG_PROBS.flip(1), COUNTS.flip(1)), None)
    assert alone.figures() == {"preference_accuracy": 1.0, "preference_margin": 0.5}
