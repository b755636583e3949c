"""Values and gradients against the formulas in NumPy, to the last digits of float64."""

import dataclasses

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.stages.distill.token_loss.answers import Answers, DenseAnswers, SparseAnswers
from armada.stages.distill.token_loss.loss import token_loss
from armada.stages.distill.token_loss.settings import TokenLossSettings
from armada.stages.language.logits import LogitTransform
from pydantic import ValidationError
from token_loss_reference import DIVERGENCES, KINDS, SETTINGS, Case, gradients
from transformers import AutoConfig

ALPHA = 0.4


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("kind", KINDS)
def test_terms_and_gradients_are_those_of_the_formulas(
    kind: str, name: str, temperature: float
) -> None:
    if kind == "drawn" and temperature != 1 and name != "forward_kl":
        with pytest.raises(JobError, match=f"{name} at temperature 2.5 cannot be estimated"):
            Case().loss(kind, name, temperature, ALPHA)
        return
    case = Case(teacher_words=6, scale=0.8, softcap=4.0)
    terms, found = case.loss(kind, name, temperature, ALPHA, chunk=2)
    task, divergence = case.reference(kind, name, temperature)
    assert terms.task.item() == pytest.approx(task(case.inputs), rel=1e-10)
    assert terms.distillation.item() == pytest.approx(divergence(case.inputs), rel=1e-10)

    def total(inputs: list[np.ndarray]) -> float:
        return ALPHA * divergence(inputs) + (1 - ALPHA) * task(inputs)

    assert terms.total.item() == pytest.approx(total(case.inputs), rel=1e-10)
    for one, other in zip(found, gradients(total, case.inputs), strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skew_kl"])
def test_gradcheck(kind: str, name: str) -> None:
    temperature = 1.0 if kind == "drawn" else 3.0
    case = Case(positions=3, width=2, words=5, listed=2, teacher_words=4, softcap=2.0, scale=1.5)

    def total(*inputs: torch.Tensor) -> torch.Tensor:
        answers, settings = case.answers(kind, temperature), SETTINGS[name]
        how = {"alpha": ALPHA, "temperature": temperature, "chunk": 2}
        return token_loss(case.tokens(*inputs), answers, settings, **how).total

    inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_squared_is_on_the_value_and_on_the_gradient(kind: str) -> None:
    """The returned value's own slope along the gradient, which a factor on one of them breaks."""
    case, step = Case(), 1e-5
    _, (slope, *_) = case.loss(kind, "forward_kl", 4.0, 1.0)
    values = []
    for sign in (1, -1):
        moved = Case()
        moved.inputs[0] = moved.inputs[0] + sign * step * slope.numpy()
        values.append(moved.loss(kind, "forward_kl", 4.0, 1.0)[0].total.item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(
        slope.square().sum().item(), rel=1e-6
    )
    assert slope.norm() > 1e-2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_words_listed_equals_dense(name: str, temperature: float) -> None:
    """Whether the tail is empty, is what rounding leaves there, or is not there at all."""
    case = Case(listed=8)
    dense, expected = case.loss("dense", name, temperature, ALPHA)
    softened = torch.from_numpy(case.log_p / temperature).log_softmax(1)
    log_probs, ids = softened.topk(8)
    nothing = torch.full((5,), -torch.inf)
    for tail in (nothing, nothing.clamp(min=-20), None):
        inputs = [torch.from_numpy(array).requires_grad_() for array in case.inputs]
        answers = SparseAnswers(ids, log_probs, tail)
        how = {"alpha": ALPHA, "temperature": temperature}
        terms = token_loss(case.tokens(*inputs), answers, SETTINGS[name], **how)
        torch.testing.assert_close(terms.total, dense.total, rtol=1e-12, atol=0)
        found = torch.autograd.grad(terms.total, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_nothing_moves_a_student_that_is_its_teacher(name: str) -> None:
    case = Case()
    logits = case.inputs[0] @ case.inputs[1].T + case.inputs[2]
    case.log_p = torch.from_numpy(logits).log_softmax(1).numpy()
    for kind in ("renormalised", "dense", "tail", "drawn"):
        if (kind, name) == ("drawn", "forward_kl"):
            continue  # compared with the frequencies of what was drawn
        terms, found = case.loss(kind, name, 1.0, 1.0)
        assert abs(terms.total.item()) < 1e-12, kind
        if name != "total_variation":  # where rounding picks the sides
            assert max(gradient.abs().max() for gradient in found) < 1e-12, kind


@pytest.mark.parametrize(
    ("name", "plain"), [("skew_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")]
)
def test_without_a_skew_it_is_kl(name: str, plain: str) -> None:
    case = Case()
    settings = TokenLossSettings(divergence=name, skew=0.0)  # type: ignore[arg-type]
    answers, how = case.answers("tail", 2.0), {"alpha": 1.0, "temperature": 2.0}
    found = token_loss(case.tokens(), answers, settings, **how)
    assert found.total == token_loss(case.tokens(), answers, SETTINGS[plain], **how).total


def test_terms_but_the_total_have_no_graph() -> None:
    terms, _ = Case().loss("tail", "forward_kl", 1.0, ALPHA)
    assert terms.total.requires_grad
    assert not terms.task.requires_grad
    assert not terms.distillation.requires_grad


@pytest.mark.parametrize(
    ("name", "temperature"), [("forward_kl", 2.0), ("reverse_kl", 1.0), ("total_variation", 1.0)]
)
def test_draws_without_probabilities_give_forward_kl_only(name: str, temperature: float) -> None:
    case = Case()
    answers = dataclasses.replace(case.answers("drawn", 1.0), log_probs_PK=None)
    how = {"alpha": ALPHA, "temperature": temperature}
    with pytest.raises(JobError, match="needs the probabilities of the sampled tokens"):
        token_loss(case.tokens(), answers, SETTINGS[name], **how)


def test_a_teacher_with_more_words_is_refused() -> None:
    answers: Answers = DenseAnswers(torch.zeros(5, 9))
    with pytest.raises(JobError, match="have 9 tokens, the student's vocabulary 8"):
        token_loss(Case().tokens(), answers, SETTINGS["jsd"], alpha=1.0, temperature=1.0)


@pytest.mark.parametrize(
    "values", [{"jsd_beta": 0.0}, {"jsd_beta": 1.0}, {"skew": 1.0}, {"divergence": "kl"}, {"x": 1}]
)
def test_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TokenLossSettings(**values)  # type: ignore[arg-type]


def test_logits_are_transformed_as_the_config_says() -> None:
    configs = {
        "granite": {"logits_scaling": 8.0},
        "cohere": {"logit_scale": 0.0625},
        "gemma2": {"final_logit_softcapping": 30.0},
        "llama": {},
    }
    found = [LogitTransform.of(AutoConfig.for_model(k, **given)) for k, given in configs.items()]
    assert found == [
        LogitTransform(0.125),
        LogitTransform(0.0625),
        LogitTransform(1.0, 30.0),
        LogitTransform(),
    ]
