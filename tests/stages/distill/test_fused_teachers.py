"""Several teachers fused into one: by hand, in NumPy, and what the gate learns."""

from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.stages.distill.losses import teachers as fusing
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import MultiKDOptions
from armada.stages.distill.objectives.teachers import MultiKDObjective
from scipy.special import log_softmax, softmax

N, B, K, D = 3, 5, 4, 6
SIZES = Sizes(D, K, False, (K,), ((K,),) * (N - 1), dropout=0.0)
LABELS = torch.tensor([0, 3, -100, 1, 2])


def made(**options: Any) -> MultiKDObjective:
    torch.manual_seed(0)
    objective = MultiKDObjective(MultiKDOptions(**options), SIZES).double()
    objective.sources = ("a", "b", "c")
    return objective


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    torch.manual_seed(1)
    teachers = tuple(2 * torch.randn(B, K).double() for _ in range(N))
    return torch.randn(B, D).double(), torch.randn(B, K).double(), teachers


def weights_in_numpy(fusion: str, z_NBK: np.ndarray) -> np.ndarray:
    p = softmax(z_NBK, axis=-1)
    if fusion == "fixed":
        return np.repeat([[0.5], [0.25], [0.25]], B, axis=1)
    if fusion == "agreement":
        shared = [[np.minimum(p[n], p[m]).sum(-1) for m in range(N) if m != n] for n in range(N)]
        total = np.sum(shared, axis=1)
        return total / total.sum(axis=0)
    losses = -(p * np.log(p)).sum(-1)
    if fusion == "confidence":
        for row, label in enumerate(LABELS.tolist()):
            if label >= 0:
                losses[:, row] = -np.log(p[:, row, label])
    return (1 - softmax(losses, axis=0)) / (N - 1)


@pytest.mark.parametrize("fused", ["probabilities", "logits"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("fusion", ["fixed", "confidence", "entropy", "agreement"])
def test_as_numpy_has_it(batch: Any, fusion: str, standardize: bool, fused: str) -> None:
    pooled, output, teachers = batch
    options = {"fusion": fusion, "standardize": standardize, "fused": fused, "temperature": 3.0}
    given = {"weights": (2, 1, 1)} if fusion == "fixed" else {}
    terms = made(**options, **given)(pooled, output, teachers, LABELS)
    z, s = np.stack([each.numpy() for each in teachers]), output.numpy()
    if standardize:
        z, s = ((x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-7) for x in (z, s))
    w = weights_in_numpy(fusion, z)
    np.testing.assert_allclose(w.sum(axis=0), 1)
    if fused == "logits":
        p = softmax((w[..., None] * z).sum(0) / 3, axis=-1)
    else:
        p = (w[..., None] * softmax(z / 3, axis=-1)).sum(0)
    expected = 9 * (p * (np.log(p) - log_softmax(s / 3, axis=-1))).sum(-1).mean()
    np.testing.assert_allclose(terms["distillation"], expected, rtol=1e-6)
    for name, mean in zip("abc", w.mean(axis=1), strict=True):
        np.testing.assert_allclose(terms[f"weight_of_{name}"], mean, rtol=1e-6)
    task = -np.mean([log_softmax(output.numpy(), -1)[n, k] for n, k in enumerate(LABELS) if k >= 0])
    np.testing.assert_allclose(terms["total"].detach(), (expected + task) / 2, rtol=1e-6)


def test_weights_by_hand() -> None:
    """Two teachers that are sure of class 0 and of class 1, and a label that says 0."""
    sure = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]]).double()
    right = float(np.exp(-0.01815) / (np.exp(-0.01815) + np.exp(-4.01815)))
    losses = fusing.confidence_losses(sure, torch.tensor([0]))
    assert losses.flatten().tolist() == pytest.approx([0.01815, 4.01815], abs=1e-5)
    found = fusing.weights_of_losses(losses).flatten().tolist()
    assert found == pytest.approx([right, 1 - right], abs=1e-6)
    unlabelled = fusing.confidence_losses(sure, torch.tensor([-100]))
    assert fusing.weights_of_losses(unlabelled).flatten().tolist() == pytest.approx([0.5, 0.5])
    assert fusing.agreement_weights(sure).flatten().tolist() == pytest.approx([0.5, 0.5])


def test_equal_teachers_are_one(batch: Any) -> None:
    """With a weight of 0, a teacher is not there: bit for bit that of the others."""
    pooled, output, (first, other, _) = batch
    alike = made(fusion="confidence")(pooled, output, (first,) * 3, LABELS)
    alone = made(weights=(1, 0, 0))(pooled, output, (first, other, 1e3 * other), LABELS)
    torch.testing.assert_close(alike["total"], alone["total"])
    student = output.clone().requires_grad_()
    made(weights=(0, 1, 0))(pooled, student, (first, other, first), LABELS)["total"].backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_extreme_logits_and_equal_ones(batch: Any) -> None:
    pooled, output, _ = batch
    extreme = torch.zeros(B, K).double()
    extreme[:, 1] = 6e4
    for fusion in ("confidence", "entropy", "agreement", "gate"):
        for standardize in (False, True):
            student = output.clone().requires_grad_()
            objective = made(fusion=fusion, standardize=standardize)
            teachers = (extreme, -extreme, torch.zeros(B, K).double())
            terms = objective(pooled, student, teachers, LABELS)
            terms["total"].backward()
            assert all(term.isfinite() for term in terms.values())
            assert student.grad is not None
            assert student.grad.isfinite().all()


def test_the_gate_learns_which_teacher_is_right() -> None:
    """The sign of the first number of a text tells; the student gets no gradient of the gate."""
    torch.manual_seed(0)
    pooled = torch.randn(64, D).double().requires_grad_()
    labels = torch.randint(K, (64,))
    right = 5 * torch.nn.functional.one_hot(labels, K).double()
    wrong = right.roll(1, dims=1)
    first = (pooled[:, :1] > 0).double()
    teachers = (first * right + (1 - first) * wrong, first * wrong + (1 - first) * right, 0 * right)
    objective = made(fusion="gate", alpha=1.0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        terms = objective(pooled, torch.zeros(64, K).double(), teachers, labels)
        terms["total"].backward()
        optimizer.step()
    assert pooled.grad is None
    assert objective.gate is not None
    weights = objective.gate(pooled).softmax(-1)
    chosen = weights.argmax(dim=1)
    assert (chosen == (pooled[:, 0] <= 0).long()).float().mean() > 0.95
    unlabelled = objective(pooled, torch.zeros(64, K).double(), teachers, labels * 0 - 100)
    assert unlabelled["gate"] == 0


def test_refused() -> None:
    with pytest.raises(JobError, match="weights: 2 are given for 3 teachers; name one for each"):
        made(weights=(1, 2))
    with pytest.raises(JobError, match="needs several teachers"):
        MultiKDObjective(MultiKDOptions(), Sizes(D, K, False, (K,)))
    with pytest.raises(ValueError, match="weights: sum to 0; give some teacher a weight"):
        MultiKDOptions(weights=(0, 0))
    with pytest.raises(ValueError, match="weights: are of fusion=fixed"):
        MultiKDOptions(weights=(1, 0), fusion="gate")


def test_standardised_logits_of_two_classes_are_refused() -> None:
    two = Sizes(D, 2, False, (2,), more_shapes=((2,),))
    MultiKDObjective(MultiKDOptions(), two)
    with pytest.raises(JobError, match=r"standardised logits of two classes.*leave standardize"):
        MultiKDObjective(MultiKDOptions(standardize=True), two)
