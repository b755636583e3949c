"""Losses of class distributions, against NumPy in float64, by hand, and against those of tokens."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from armada.stages.distill.losses import kd_loss
from armada.stages.distill.losses.divergences import (
    balanced_kl_loss,
    jsd_loss,
    reverse_kl_loss,
    skew_kl_loss,
    skew_reverse_kl_loss,
    tvd_loss,
)
from armada.stages.distill.losses.logits import dkd_losses, logit_mse_loss, target_classes
from armada.stages.distill.objectives.options import DKDOptions
from armada.stages.distill.token_loss.divergences import measure_of
from armada.stages.distill.token_loss.settings import TokenLossSettings
from pydantic import ValidationError
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Array = npt.NDArray[np.float64]
TARGETS = torch.tensor([0, 1, 1, 0, 1])


def _dkd(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    targets_B = TARGETS[: len(student_BK)] % student_BK.shape[1]
    target, nontarget = dkd_losses(student_BK, teacher_BK, targets_B, 2.0)
    return target + 8 * nontarget


LOSSES: dict[str, Loss] = {
    "reverse_kl": partial(reverse_kl_loss, temperature=2.0),
    "jsd": partial(jsd_loss, temperature=2.0, jsd_beta=0.3),
    "skew_kl": partial(skew_kl_loss, temperature=2.0, skew=0.2),
    "skew_reverse_kl": partial(skew_reverse_kl_loss, temperature=2.0, skew=0.2),
    "total_variation": partial(tvd_loss, temperature=2.0),
    "balanced_kl": partial(balanced_kl_loss, temperature=2.0, balance=3.0),
    "logit_mse": partial(logit_mse_loss, centred=True),
    "dkd": _dkd,
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def _logits(rows: int, classes: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, classes, dtype=torch.float64, generator=draw)


# --- The same numbers in NumPy, from probabilities and not from logarithms


def _soft(logits_BK: Array) -> Array:
    powers = np.exp(logits_BK / 2)
    return powers / powers.sum(axis=1, keepdims=True)


def _kl(p: Array, q: Array) -> Array:
    return (p * np.log(p / q)).sum(axis=1)


def _balanced(p: Array, q: Array) -> Array:
    certain = (q * np.log(q)).sum(axis=1) > (p * np.log(p)).sum(axis=1)
    return np.where(certain, 3 * _kl(p, q) + _kl(q, p), _kl(p, q) + 3 * _kl(q, p))


def _decoupled(p: Array, q: Array) -> Array:
    found = []
    for row, y in enumerate(TARGETS[: len(p)].tolist()):
        others = np.arange(p.shape[1]) != y
        (own_p, own_q), (p_, q_) = (p[row, y], q[row, y]), (p[row, others], q[row, others])
        target = _kl(np.array([[own_p, p_.sum()]]), np.array([[own_q, q_.sum()]]))[0]
        found.append(target + 8 * _kl(p_[None] / p_.sum(), q_[None] / q_.sum())[0])
    return np.array(found)


REFERENCES: dict[str, Callable[[Array, Array], Array]] = {
    "reverse_kl": lambda p, q: _kl(q, p),
    "jsd": lambda p, q: 0.3 * _kl(p, 0.3 * p + 0.7 * q) + 0.7 * _kl(q, 0.3 * p + 0.7 * q),
    "skew_kl": lambda p, q: _kl(p, 0.2 * p + 0.8 * q),
    "skew_reverse_kl": lambda p, q: _kl(q, 0.8 * p + 0.2 * q),
    "total_variation": lambda p, q: np.abs(p - q).sum(axis=1) / 2,
    "balanced_kl": _balanced,
    "dkd": _decoupled,
}


@pytest.mark.parametrize("classes", [2, 3, 500])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_second_computation(name: str, classes: int) -> None:
    student, teacher = _logits(5, classes, 0), _logits(5, classes, 1)
    expected = 4 * REFERENCES[name](_soft(teacher.numpy()), _soft(student.numpy())).mean()
    assert LOSSES[name](student, teacher).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"])
def test_they_are_those_of_tokens(name: str) -> None:
    """The two were written apart: these by the graph, those with their slopes."""
    name = {"tvd": "total_variation"}.get(name, name)
    student, teacher = _logits(5, 7, 0).requires_grad_(), _logits(5, 7, 1)
    settings = TokenLossSettings(divergence=name, jsd_beta=0.3, skew=0.2)
    log_p, log_q = ((each / 2).log_softmax(-1) for each in (teacher, student.detach()))
    parts, slopes = measure_of(settings)(log_p, log_q)
    loss = LOSSES[name](student, teacher)
    torch.testing.assert_close(loss.detach(), 4 * parts.sum(1).mean())
    loss.backward()
    pushed = slopes - log_q.exp() * slopes.sum(1, keepdim=True)
    torch.testing.assert_close(student.grad, 2 / 5 * pushed)


def test_by_hand() -> None:
    """Probabilities (3/4, 1/4) of the teacher and (1/2, 1/2) of the student, at T = 1."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    log = np.log
    assert reverse_kl_loss(student, teacher, 1.0).item() == pytest.approx(log(4 / 3) / 2)
    middle = 0.75 * log(6 / 5) + 0.25 * log(2 / 3)
    assert skew_kl_loss(student, teacher, 1.0, 0.5).item() == pytest.approx(middle)
    assert tvd_loss(student, teacher, 1.0).item() == pytest.approx(1 / 4)
    # The student is the less certain: forward KL once, reverse KL twice.
    forward = 0.75 * log(3 / 2) + 0.25 * log(1 / 2)
    balanced = balanced_kl_loss(student, teacher, 1.0, 2.0).item()
    assert balanced == pytest.approx(forward + log(4 / 3))
    assert logit_mse_loss(student + 2, student, centred=False).item() == 4
    assert logit_mse_loss(student + 2, student, centred=True).item() == 0


def test_decoupled_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), target 0: halves against quarters, and
    (1/2, 1/2) against (1/3, 2/3) among the others."""
    teacher = torch.tensor([[2.0, 1.0, 1.0]]).log()
    student = torch.tensor([[1.0, 1.0, 2.0]]).log()
    target, nontarget = dkd_losses(student, teacher, torch.tensor([0]), 1.0)
    assert target.item() == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert nontarget.item() == pytest.approx(0.5 * np.log(3 / 2) + 0.5 * np.log(3 / 4))


def test_decoupled_adds_up_to_kl() -> None:
    """target + (1 - p_y)·nontarget, row by row."""
    student, teacher = _logits(1, 9, 0), _logits(1, 9, 1)
    target, nontarget = dkd_losses(student, teacher, torch.tensor([4]), 2.0)
    others = 1 - (teacher / 2).softmax(-1)[0, 4]
    labels = torch.tensor([4])
    whole = kd_loss(
        student_output=student, teacher_logits=teacher, labels=labels, alpha=1.0, temperature=2.0
    )
    torch.testing.assert_close(target + others * nontarget, whole.distillation)


def test_rows_without_a_label_take_the_teachers_class() -> None:
    teacher = torch.tensor([[0.0, 1, 2], [5, 1, 2]])
    assert target_classes(teacher, torch.tensor([1, -100])).tolist() == [1, 0]


def test_decoupled_weights_must_weigh_something() -> None:
    with pytest.raises(ValidationError, match="nothing is left of the teacher"):
        DKDOptions(target_weight=0, nontarget_weight=0)


@each_loss
@pytest.mark.parametrize("classes", [2, 6])
def test_invariances_optimum_and_gradient(loss: Loss, classes: int) -> None:
    """A constant added to a row changes nothing; equal distributions have loss 0 and slope 0."""
    student, teacher = _logits(5, classes, 0), _logits(5, classes, 1)
    assert loss(student, teacher) > 0
    shift = torch.arange(5.0).unsqueeze(-1)
    torch.testing.assert_close(loss(student + shift, teacher - shift), loss(student, teacher))
    best = teacher.clone().requires_grad_()
    value = loss(best, teacher)
    assert value.item() == pytest.approx(0, abs=1e-15)
    value.backward()
    torch.testing.assert_close(best.grad, torch.zeros_like(teacher), rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.clone().requires_grad_())


@each_loss
@pytest.mark.parametrize("classes", [1, 2, 1000])
@pytest.mark.parametrize("size", [0.0, 1e-6, 6e4])
def test_extremes(loss: Loss, classes: int, size: float) -> None:
    student = (size * _logits(5, classes, 0).sign()).float().requires_grad_()
    value = loss(student, (size * _logits(5, classes, 1).sign()).float())
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@each_loss
def test_error_of_bfloat16(loss: Loss) -> None:
    """Logits rounded to 8 bits: the loss of five rows is off by less than 1 part in 100."""
    student, teacher = _logits(5, 10, 0), _logits(5, 10, 1)
    rounded = loss(*(each.bfloat16().float() for each in (student, teacher)))
    assert rounded.item() == pytest.approx(loss(student, teacher).item(), rel=0.01)
