"""Losses of labels of several numbers: worked by hand, by NumPy, and in closed form."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from armada.stages.distill import closed_forms, losses
from torch import Tensor

KINDS = ["multilabel", "soft", "outputs"]
FORMS = [pytest.param(losses, id="plain"), pytest.param(closed_forms, id="closed form")]
NAN = math.nan
Array = npt.NDArray[Any]


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def make_labels(kind: str, rows: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if kind == "multilabel":
        labels = torch.randint(2, (rows, classes), generator=generator).to(torch.int8)
        labels[:1], labels[1:2, :1] = losses.MISSING_LABEL, losses.MISSING_LABEL
        return labels
    drawn = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    labels = drawn.softmax(dim=1) if kind == "soft" else 2 * drawn
    labels[:1] = NAN
    if kind == "outputs":
        labels[1:2, :1] = NAN
    return labels


# --- by NumPy, in float64


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def task_by_numpy(kind: str, output: Array, labels: Array) -> float:
    if kind == "multilabel":
        terms = [
            -math.log(sigmoid(o) if y else 1 - sigmoid(o))
            for o, y in zip(output.ravel(), labels.ravel(), strict=True)
            if y >= 0
        ]
    elif kind == "soft":
        known = ~np.isnan(labels[:, 0])
        terms = list(-(labels[known] * np.log(softmax(output[known]))).sum(1))
    else:
        terms = [
            (o - y) ** 2
            for o, y in zip(output.ravel(), labels.ravel(), strict=True)
            if not math.isnan(y)
        ]
    return float(np.mean(terms)) if terms else 0.0


def softened_by_numpy(kind: str, logits: Array, temperature: float) -> Array:
    return sigmoid(logits / temperature) if kind == "multilabel" else softmax(logits / temperature)


def kl_by_numpy(kind: str, teacher: Array, student: Array, temperature: float) -> float:
    p, q = (softened_by_numpy(kind, each, temperature) for each in (teacher, student))
    if kind == "multilabel":
        each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        return float(temperature**2 * each.mean())
    return float(temperature**2 * (p * np.log(p / q)).sum(1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_task(kind: str) -> None:
    for rows in (1, 2, 9):
        output, labels = numbers(rows, 4, seed=1), make_labels(kind, rows, 4)
        found = losses.task_loss(output, labels, regression=kind == "outputs")
        expected = task_by_numpy(kind, output.numpy(), labels.numpy())
        assert float(found) == pytest.approx(expected, rel=1e-12)


def test_tasks_by_hand() -> None:
    """Logits 0 and ln 3: probabilities of one by itself 1/2 and 3/4, of two classes 1/4 and 3/4."""
    output = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    both = losses.task_loss(output, torch.tensor([[1, 0]]), regression=False)
    assert float(both) == pytest.approx((math.log(2) + math.log(4)) / 2)
    known = losses.task_loss(output, torch.tensor([[losses.MISSING_LABEL, 1]]), regression=False)
    assert float(known) == pytest.approx(math.log(4 / 3))
    soft = losses.task_loss(output, torch.tensor([[0.5, 0.5]]).double(), regression=False)
    assert float(soft) == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    wanted = torch.tensor([[2.0, NAN]], dtype=torch.float64)
    assert float(losses.task_loss(output, wanted, regression=True)) == pytest.approx(4)


def test_probabilities_of_one_class_are_that_class() -> None:
    output, labels = numbers(5, 3, seed=2), torch.tensor([0, 2, 1, -100, 2])
    soft = torch.eye(3, dtype=torch.float64)[labels.clamp(min=0)]
    soft[3] = NAN
    one, other = (losses.task_loss(output, each, False) for each in (labels, soft))
    assert float(one) == pytest.approx(float(other), rel=1e-12)
    assert losses.likeliest_classes(soft).equal(labels)


@pytest.mark.parametrize("forms", FORMS)
def test_distillation_by_hand(forms: Any) -> None:
    """Probabilities of one class by itself, 3/4 and the student's 1/2, T = 1; numbers 3 and 1."""
    settings = {"alpha": 0.25, "temperature": 1.0}
    teacher, student = torch.tensor([[math.log(3)]]).double(), torch.zeros(1, 1).double()
    terms = forms.kd_loss(
        student_output=student, teacher_logits=teacher, labels=torch.tensor([[1]]), **settings
    )
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(terms.distillation) == pytest.approx(expected)
    assert float(terms.task) == pytest.approx(math.log(2))
    assert float(terms.total) == pytest.approx(0.25 * expected + 0.75 * math.log(2))
    terms = forms.kd_loss(
        student_output=torch.tensor([[1.0]]).double(),
        teacher_logits=torch.tensor([[3.0]]).double(),
        labels=torch.tensor([2.0]).double(),
        regression=True,
        **settings,
    )
    assert [float(each) for each in (terms.distillation, terms.task)] == [4, 1]
    assert float(terms.total) == 0.25 * 4 + 0.75 * 1


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_distillation(kind: str, forms: Any) -> None:
    student, teacher = (numbers(7, 3, seed=seed) for seed in (1, 2))
    labels = make_labels(kind, 7, 3)
    terms = forms.kd_loss(
        student_output=student,
        teacher_logits=teacher,
        labels=labels,
        alpha=0.3,
        temperature=2.5,
        regression=kind == "outputs",
    )
    s, t = student.numpy(), teacher.numpy()
    expected = ((s - t) ** 2).mean() if kind == "outputs" else kl_by_numpy(kind, t, s, 2.5)
    task = task_by_numpy(kind, s, labels.numpy())
    assert float(terms.distillation) == pytest.approx(expected, rel=1e-10)
    assert float(terms.task) == pytest.approx(task, rel=1e-12)
    assert float(terms.total) == pytest.approx(0.3 * expected + 0.7 * task, rel=1e-10)


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_armada(kind: str, forms: Any) -> None:
    s1, s2, t1, t2 = (numbers(7, 3, seed=seed) for seed in range(4))
    labels = make_labels(kind, 7, 3)
    projections = {
        "student_projection": numbers(7, 5, seed=8),
        "aligner_projection": numbers(7, 5, seed=9),
    }
    terms = forms.armada_loss(
        student_output=s1,
        student_aux_output=s2,
        aligner_output=t1,
        aligner_aux_output=t2,
        labels=labels,
        alpha=0.3,
        beta=0.0,
        gamma=0.4,
        temperature=2.0,
        manifold="cosine",
        regression=kind == "outputs",
        **projections,
    )

    def aligned(teacher: Tensor, student: Tensor) -> float:
        if kind == "outputs":
            return float((teacher - student).square().mean())
        t, s = (softened_by_numpy(kind, each.numpy(), 2.0) for each in (teacher, student))
        return float(4 * ((t - s) ** 2).mean())

    output = aligned(t1, s1) + 0.4 * aligned(t2, s2)
    task, aux = (task_by_numpy(kind, each.numpy(), labels.numpy()) for each in (s1, s2))
    assert float(terms.output) == pytest.approx(output, rel=1e-12)
    assert float(terms.total) == pytest.approx(0.3 * output + 0.7 * (task + 0.4 * aux), rel=1e-12)
    aligner = losses.aligner_loss(t1, t2, labels, 0.4, kind == "outputs")
    both = [task_by_numpy(kind, each.numpy(), labels.numpy()) for each in (t1, t2)]
    assert float(aligner) == pytest.approx(both[0] + 0.4 * both[1], rel=1e-12)


# --- gradients


def total_of(name: str, forms: Any, kind: str, temperature: Any, *moving: Tensor) -> Tensor:
    rows, classes = moving[0].shape
    labels, regression = make_labels(kind, rows, classes), kind == "outputs"
    if name == "kd":
        terms = forms.kd_loss(
            student_output=moving[0],
            teacher_logits=numbers(rows, classes, seed=21),
            labels=labels,
            alpha=0.3,
            temperature=temperature,
            regression=regression,
        )
    elif name == "feature":
        terms = forms.feature_loss(
            projection=moving[2],
            feature=numbers(rows, 5, seed=22),
            output=moving[0],
            labels=labels,
            beta=0.5,
            distance="mse",
            regression=regression,
        )
    else:
        terms = forms.armada_loss(
            student_output=moving[0],
            student_aux_output=moving[1],
            student_projection=moving[2],
            aligner_output=numbers(rows, classes, seed=23),
            aligner_aux_output=numbers(rows, classes, seed=24),
            aligner_projection=numbers(rows, 5, seed=25),
            labels=labels,
            alpha=0.3,
            beta=0.7,
            gamma=0.4,
            temperature=2.0,
            manifold="pointwise",
            regression=regression,
        )
    total: Tensor = terms.total
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["kd", "feature", "armada"])
def test_gradients_of_both_forms(name: str, kind: str) -> None:
    for rows in (1, 2, 6):
        inputs = (numbers(rows, 3, seed=1), numbers(rows, 3, seed=2), numbers(rows, 5, seed=3))
        found = []
        for forms in (losses, closed_forms):
            moving = [each.clone().requires_grad_() for each in inputs]
            total = total_of(name, forms, kind, 2.5, *moving)
            total.backward()
            found.append([total.detach(), *(each.grad for each in moving)])
        for one, other in zip(*found, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)

    def plain(*moving: Tensor) -> Tensor:
        return total_of(name, losses, kind, 2.5, *moving)

    assert torch.autograd.gradcheck(plain, tuple(each.requires_grad_() for each in inputs))


@pytest.mark.parametrize("forms", FORMS)
def test_a_temperature_of_many_classes_is_learned(forms: Any) -> None:
    student = numbers(4, 3, seed=1).requires_grad_()
    temperature = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)

    def total(output: Tensor, t: Tensor) -> Tensor:
        return total_of("kd", forms, "multilabel", t, output)

    assert torch.autograd.gradcheck(total, (student, temperature))


# --- invariances and edges


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_loss_is_at_equality(kind: str) -> None:
    teacher = numbers(5, 3, seed=1)
    labels = make_labels(kind, 5, 3)

    def distillation(student: Tensor) -> float:
        terms = losses.kd_loss(
            student_output=student,
            teacher_logits=teacher,
            labels=labels,
            alpha=1.0,
            temperature=3.0,
            regression=kind == "outputs",
        )
        return float(terms.distillation)

    assert distillation(teacher) == pytest.approx(0, abs=1e-15)
    assert all(distillation(teacher + 0.1 * numbers(5, 3, seed=seed)) > 0 for seed in range(2, 6))


def test_a_shift_of_all_logits_matters_to_classes_by_themselves_alone() -> None:
    output, labels = numbers(5, 3, seed=1), make_labels("soft", 5, 3)
    same = losses.task_loss(output, labels, False)
    assert float(losses.task_loss(output + 2, labels, False)) == pytest.approx(float(same))
    labels = make_labels("multilabel", 5, 3)
    other = losses.task_loss(output, labels, False)
    assert float(losses.task_loss(output + 2, labels, False)) != pytest.approx(float(other))


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_label_at_all(kind: str, forms: Any) -> None:
    """Row 0 alone: nothing known; the task is 0, and the teacher teaches all the same."""
    student = numbers(1, 3, seed=1).requires_grad_()
    total = total_of("kd", forms, kind, 2.0, student)
    total.backward()
    assert float(total.detach()) > 0
    assert student.grad is not None
    assert student.grad.isfinite().all()
    task = losses.task_loss(student, make_labels(kind, 1, 3), kind == "outputs")
    assert float(task.detach()) == 0


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extremes_are_finite(kind: str, forms: Any, scale: float) -> None:
    student = (scale * numbers(6, 3, seed=1).sign()).float().requires_grad_()
    total = total_of("kd", forms, kind, 2.0, student)
    total.backward()
    assert student.grad is not None
    assert total.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_summed_in_float32(kind: str) -> None:
    rounded = numbers(64, 3, seed=1).bfloat16()
    labels = make_labels(kind, 64, 3)
    one, other = (
        losses.task_loss(output, labels, kind == "outputs")
        for output in (rounded, rounded.double())
    )
    assert one.dtype == torch.float32
    assert float(one) == pytest.approx(float(other), rel=1e-5)
