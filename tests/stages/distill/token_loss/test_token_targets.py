"""Comparisons that look at targets, progress and weights of tokens: against NumPy, and by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.stages.distill.objectives.options import TokensOptions
from armada.stages.distill.token_loss.answers import (
    Answers,
    DenseAnswers,
    SampledAnswers,
    SparseAnswers,
)
from armada.stages.distill.token_loss.loss import Tokens, TokenTerms, token_loss
from armada.stages.distill.token_loss.settings import TokenLossSettings
from armada.stages.distill.token_loss.targets import atkd, dkd, self_evolution, taid
from pydantic import ValidationError
from token_loss_reference import Case, gradients, kl, log_softmax

ALPHA, PROGRESS = 0.4, 0.25
WAYS: dict[str, dict[str, Any]] = {
    "taid": {"divergence": "taid", "taid_start": 0.2, "taid_end": 0.8},
    "dkd": {"divergence": "dkd", "nontarget_weight": 3.0},
    "atkd": {"divergence": "atkd", "atkd_uncertainty": 0.6},
    "self_evolution": {
        **{"divergence": "self_evolution", "evolution_label_share": 0.3},
        **{"evolution_prior_share": 0.4, "evolution_difficulty": 0.6},
    },
    "entropy": {"token_weights": "entropy"},
    "certainty": {"token_weights": "certainty", "divergence": "dkd"},
    "gap": {"token_weights": "gap", "divergence": "reverse_kl"},
}
each_way = pytest.mark.parametrize("way", WAYS)
each_kind = pytest.mark.parametrize("kind", ["tail", "renormalised", "dense"])


def _loss(case: Case, kind: str, way: str, temperature: float, **how: Any) -> tuple[Any, Any]:
    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    terms = token_loss(
        case.tokens(*inputs),
        case.answers(kind, temperature),
        TokenLossSettings(**WAYS[way]),
        alpha=ALPHA,
        temperature=temperature,
        progress=PROGRESS,
        **how,
    )
    return terms, torch.autograd.grad(terms.total, inputs)


def _outcomes(answers: Answers, row: int, q: np.ndarray, label: int, temperature: float) -> Any:
    """p and q of the outcomes, and which of them the target is, -1 for unknown."""
    if isinstance(answers, DenseAnswers):
        p = np.exp(log_softmax(answers.log_probs_PV[row].numpy() / temperature))
        p = np.concatenate([p, np.zeros(len(q) - len(p))])
        return p, q, max(label, -1)
    assert isinstance(answers, SparseAnswers)
    present = answers.log_probs_Pk[row].numpy() > -np.inf
    ids = answers.ids_Pk[row].numpy()[present].tolist()
    p, own = np.exp(answers.log_probs_Pk[row].numpy()[present]), q[ids]
    if answers.log_tail_P is None:
        p, own = p / p.sum(), own / own.sum()
        return p, own, ids.index(label) if label in ids else -1
    p = np.append(p, np.exp(answers.log_tail_P[row].numpy()))
    own = np.append(own, np.delete(q, ids).sum())
    if label < 0:
        return p, own, -1
    return p, own, ids.index(label) if label in ids else len(ids)


def _halves(p: np.ndarray, q: np.ndarray, y: int) -> tuple[Any, Any]:
    others = np.arange(len(p)) != y
    rest_p, rest_q = p[others].sum(), q[others].sum()
    target = kl(np.array([p[y], rest_p]), np.array([q[y], rest_q]))
    return target, kl(p[others] / rest_p, q[others] / rest_q)


def _evolved(p: np.ndarray, q: np.ndarray, y: int) -> Any:
    r = p if y < 0 else 0.7 * p + 0.3 * np.eye(len(p))[y]
    return kl(r, 0.4 * r + 0.6 * q if kl(r, q.real) > 0.6 else q)


def _of_row(way: str, p: np.ndarray, q: np.ndarray, given: int, columns: int) -> Any:
    y = given if given >= 0 else p.argmax()
    target, nontarget = _halves(p, q, y)
    with np.errstate(divide="ignore"):
        between = np.exp(0.65 * np.log(q.real) + 0.35 * np.log(p))  # 0.2 + 0.25 · 0.6
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum() / np.log(columns)
    return {
        "taid": lambda: kl(between / between.sum(), q),
        "dkd": lambda: target + 3 * nontarget,
        "atkd": lambda: 0.8 * (target + nontarget) if 1 - p[y] > 0.6 else 0.2 * nontarget,
        "self_evolution": lambda: _evolved(p, q, given),
        "entropy": lambda: entropy * kl(p, q),
        "certainty": lambda: (1 - entropy) * (target + 8 * nontarget),
        "gap": lambda: np.abs(p - q.real).sum() / 2 * kl(q, p),
    }[way]()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@each_way
@each_kind
def test_terms_and_gradients_are_those_of_the_formulas(
    kind: str, way: str, temperature: float
) -> None:
    """Some targets are listed, some are in the tail, some are unknown."""
    case = Case(positions=9, teacher_words=8, listed=3, scale=0.8, softcap=4.0)
    answers = case.answers(kind, temperature)
    task, _ = case.reference(kind, "forward_kl", temperature)
    columns = {"tail": 4, "renormalised": 3, "dense": 8}[kind]
    hard, difficult = set(), set()

    def divergence(inputs: list[np.ndarray]) -> Any:
        z = 0.8 * (inputs[0] @ inputs[1].T + inputs[2])
        q = np.exp(log_softmax(4 * np.tanh(z / 4) / temperature))
        total = 0
        rows = np.flatnonzero(case.answered)
        for row in rows:
            p, own, y = _outcomes(answers, row, q[row], int(case.labels[row]), temperature)
            hard.add(bool(1 - p[y if y >= 0 else p.argmax()] > 0.6))
            r = p if y < 0 else 0.7 * p + 0.3 * np.eye(len(p))[y]
            difficult.add(bool(kl(r, own.real) > 0.6))
            total += _of_row(way, p, own, y, columns)
        return temperature**2 * total / len(rows)

    def whole(inputs: list[np.ndarray]) -> Any:
        return ALPHA * divergence(inputs) + (1 - ALPHA) * task(inputs)

    terms, found = _loss(case, kind, way, temperature, chunk=2)
    assert terms.distillation.item() == pytest.approx(divergence(case.inputs), rel=1e-10)
    assert terms.total.item() == pytest.approx(whole(case.inputs), rel=1e-10)
    for one, other in zip(found, gradients(whole, case.inputs), strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-10, atol=1e-12)
    assert hard == difficult == {True, False} or temperature != 1


@each_way
@each_kind
def test_chunks_change_nothing_but_rounding(kind: str, way: str) -> None:
    case = Case(positions=13)
    whole, expected = _loss(case, kind, way, 2.0)
    for chunk in (1, 4):
        terms, found = _loss(case, kind, way, 2.0, chunk=chunk)
        torch.testing.assert_close(terms.total, whole.total, rtol=1e-14, atol=0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@each_kind
@pytest.mark.parametrize("way", ["dkd", "atkd", "self_evolution"])
def test_gradcheck(kind: str, way: str) -> None:
    case = Case(positions=3, width=2, words=5, listed=2, teacher_words=4, softcap=2.0, scale=1.5)

    def total(*inputs: torch.Tensor) -> torch.Tensor:
        how = {"alpha": ALPHA, "temperature": 3.0, "chunk": 2}
        settings = TokenLossSettings(**WAYS[way])
        return token_loss(case.tokens(*inputs), case.answers(kind, 3.0), settings, **how).total

    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    assert torch.autograd.gradcheck(total, inputs)


def test_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2): target 0 has ½·ln 2 + ½·ln ⅔, the others
    ½·ln 3/2 + ½·ln 3/4; in the middle of their logits is (1, 1/√2, 1) of 2 + 1/√2."""
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ([2, 1, 1], [1, 1, 2]))
    p, q = p.log_softmax(1), q.log_softmax(1)
    first = torch.tensor([0])
    target = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    nontarget = 0.5 * np.log(3 / 2) + 0.5 * np.log(3 / 4)
    parts, _ = dkd(p.clone(), q, first, target_weight=1.0, nontarget_weight=2.0)
    assert parts.sum().item() == pytest.approx(target + 2 * nontarget)
    for uncertainty, expected in ((0.4, 0.8 * (target + nontarget)), (0.5, 0.2 * nontarget)):
        parts, _ = atkd(p.clone(), q, first, easy_weight=0.2, uncertainty=uncertainty)
        assert parts.sum().item() == pytest.approx(expected)
    between = np.array([1, 0.5**0.5, 1]) / (2 + 0.5**0.5)
    student = np.array([0.25, 0.25, 0.5])
    parts, _ = taid(p.clone(), q, share=0.5)
    assert parts.sum().item() == pytest.approx(kl(between, student))


def test_self_evolution_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), half of the label 0: the target (3/4, 1/8,
    1/8) is ¾·ln 3 - ⅛·ln 2 - ⅛·ln 4 = 0.564 from the student; half of it mixed in, m is
    (1/2, 3/16, 5/16)."""
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ([2, 1, 1], [1, 1, 2]))
    p, q = p.log_softmax(1), q.log_softmax(1)
    far = 0.75 * np.log(3) + 0.125 * np.log(1 / 2) + 0.125 * np.log(1 / 4)
    led = 0.75 * np.log(3 / 2) + 0.125 * np.log(2 / 3) + 0.125 * np.log(2 / 5)
    for difficulty, expected in ((0.56, led), (0.57, far)):
        settings = {"label_share": 0.5, "prior_share": 0.5, "difficulty": difficulty}
        parts, _ = self_evolution(p.clone(), q, torch.tensor([0]), **settings)
        assert parts.sum().item() == pytest.approx(expected)


@each_kind
def test_self_evolution_without_shares_is_forward_kl(kind: str) -> None:
    """Bit for bit."""
    case = Case(positions=9)
    inputs = [torch.from_numpy(array).float().requires_grad_() for array in case.inputs]
    none = {"evolution_label_share": 0.0, "evolution_prior_share": 0.0}
    found = []
    for settings in ({}, {"divergence": "self_evolution", **none}):
        chosen = TokenLossSettings(**settings)  # type: ignore[arg-type]
        answers = case.answers(kind, 2.0)
        how = {"alpha": ALPHA, "temperature": 2.0, "chunk": 4}
        total = token_loss(case.tokens(*inputs), answers, chosen, **how).total
        found.append([total, *torch.autograd.grad(total, inputs)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("difficulty", [0.0, 100.0])
def test_self_evolution_has_its_least_at_the_target(difficulty: float) -> None:
    """Of label and teacher, whether or not a token is difficult."""
    p = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 3, -1, 5])
    mixed = 0.7 * p.softmax(1) + 0.3 * torch.eye(7, 6, dtype=torch.float64)[target]
    mixed[2] = p[2].softmax(0)
    settings = {"label_share": 0.3, "prior_share": 0.4, "difficulty": difficulty}
    q = mixed.log()
    parts, slopes = self_evolution(p.log_softmax(1), q, target, **settings)
    assert parts.sum(1).abs().max() < 1e-14
    pushes = slopes - q.exp() * slopes.sum(1, keepdim=True)
    assert pushes.abs().max() < 1e-14


@each_kind
@pytest.mark.parametrize("way", [name for name in WAYS if name != "self_evolution"])
def test_equal_distributions_have_no_loss(kind: str, way: str) -> None:
    """Logits are the teacher's log-probabilities."""
    case = Case(width=8)
    case.inputs = [case.log_p, np.eye(8), np.arange(8) * 0.0]
    terms, _ = _loss(case, kind, way, 2.0)
    assert terms.distillation.item() == pytest.approx(0, abs=1e-14)


@each_kind
@each_way
@pytest.mark.parametrize("size", [0.0, 1e3])
def test_extremes(kind: str, way: str, size: float) -> None:
    """Student and teacher sure of one token each, or of none; a vocabulary of which all is
    listed."""
    for listed in (1, 8):
        case = Case(listed=listed)
        case.inputs = [size * array for array in case.inputs]
        case.log_p = torch.from_numpy(size * case.log_p).log_softmax(1).numpy()
        case.inputs = [array.astype(np.float32) for array in case.inputs]
        terms, found = _loss(case, kind, way, 1.0)
        for each in (terms.total, *found):
            assert each.isfinite().all()


def _sampled(**settings: Any) -> TokenTerms:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    tokens = Tokens(torch.zeros(2, 4), torch.zeros(5, 4), torch.zeros(2, dtype=torch.int64))
    answers = SampledAnswers(ids, torch.full((2, 3), -1.0))
    chosen = TokenLossSettings(**settings)
    return token_loss(tokens, answers, chosen, alpha=0.5, temperature=1.0)


@pytest.mark.parametrize("divergence", ["taid", "dkd", "atkd", "self_evolution"])
def test_samples_are_refused(divergence: str) -> None:
    with pytest.raises(JobError, match="cache top_k or dense"):
        _sampled(divergence=divergence)
    with pytest.raises(JobError, match="token_weights gap needs all of a distribution"):
        _sampled(token_weights="gap")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_weight": 0, "nontarget_weight": 0}, "nothing is left of the teacher"),
        ({"taid_start": 0.9, "taid_end": 0.5}, "lower taid_start"),
        ({"cross_tokenizer": True, "token_weights": "gap"}, "weighs all tokens alike"),
        ({"cross_tokenizer": True, "divergence": "dkd"}, "leave divergence out"),
        ({"atkd_uncertainty": 2}, "less than or equal to 1"),
        ({"evolution_label_share": 1}, "less than 1"),
        ({"evolution_difficulty": "nan"}, "finite number|greater than"),
        ({"token_temperatures": [1, 0]}, "greater than 0"),
        ({"token_temperatures": [1, 2], "token_temperature": 2}, "leave one of them out"),
        ({"token_temperatures": [1, 2], "cross_tokenizer": True}, "leave it out"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokensOptions(**options)
