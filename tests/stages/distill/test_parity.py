"""The same losses in public packages; skipped where these are not installed."""

import inspect

import numpy as np
import pytest
import torch
from armada.stages.distill.losses.batch_logits import sinkhorn_loss
from armada.stages.distill.losses.divergences import forward_kl_loss, jsd_loss, reverse_kl_loss
from torch import Tensor

pytestmark = pytest.mark.slow


def _logits() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 8, 6, dtype=torch.float64, generator=draw)
    return student, teacher


def test_sinkhorn_of_pot() -> None:
    """With as many iterations as it takes; 20 of them are within 1 part in 100,000."""
    ot = pytest.importorskip("ot")
    student, teacher = _logits()
    q, p = ((each / 2).softmax(-1).numpy() for each in (student, teacher))
    cost = np.abs(q[:, None] - p[None]).sum(-1)
    plan = ot.sinkhorn(np.ones(8) / 8, np.ones(8) / 8, cost, 0.1, numItermax=10_000, stopThr=1e-14)
    expected = (plan * cost).sum()
    assert sinkhorn_loss(student, teacher, 2.0, 0.1, 2000).item() == pytest.approx(expected, 1e-12)
    assert sinkhorn_loss(student, teacher, 2.0, 0.1, 20).item() == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergences_of_trl(temperature: float) -> None:
    """Its losses are these over T²."""
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    theirs = inspect.unwrap(trainer.generalized_jsd_loss)
    student, teacher = _logits()

    def jsd(beta: float) -> float:
        return theirs(student, teacher, beta=beta, temperature=temperature).item()

    for beta in (0.1, 0.5, 0.9):
        ours = jsd_loss(student, teacher, temperature, beta).item()
        assert jsd(beta) == pytest.approx(ours / temperature**2)
    for beta, loss in ((0, forward_kl_loss), (1, reverse_kl_loss)):
        ours = loss(student, teacher, temperature).item()
        assert jsd(beta) == pytest.approx(ours / temperature**2)
