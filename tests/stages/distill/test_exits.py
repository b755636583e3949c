"""The loss of branches into logits: by hand, and against NumPy in float64."""

import math

import numpy as np
import pytest
import torch
from armada.stages.distill.losses.targets import ofa_loss


def test_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): ((1 + 3/4)^2 + 1/4) log 2, and log 2 without a label."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    found = ofa_loss(student, teacher, torch.tensor([0]), 2.0)
    assert float(found) == pytest.approx((1.75**2 + 0.25) * math.log(2), rel=1e-6)
    alone = ofa_loss(student, teacher, torch.tensor([-100]), 2.0)
    assert float(alone) == pytest.approx(math.log(2), rel=1e-6)


def test_against_numpy() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 6, 4))
    labels = np.array([0, 3, -100, 1, 2, 2])
    p = np.exp(teacher) / np.exp(teacher).sum(1, keepdims=True)
    log_q = student - np.log(np.exp(student).sum(1, keepdims=True))
    rows = []
    for row, label in enumerate(labels):
        weights = p[row].copy()
        if label >= 0:
            weights[label] = (1 + p[row, label]) ** 1.4
        rows.append(-(weights * log_q[row]).sum())
    found = ofa_loss(
        torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(labels), 1.4
    )
    assert float(found) == pytest.approx(np.mean(rows), rel=1e-12)


def test_plain_enhancement_is_cross_entropy_and_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1])
    p = teacher.softmax(1)
    expected = (
        torch.nn.functional.cross_entropy(student, labels)
        - (p * student.log_softmax(1)).sum(1).mean()
    )
    torch.testing.assert_close(ofa_loss(student, teacher, labels, 1.0), expected)
