"""Norm and direction, smooth L1 and projectors, against NumPy in float64 and by hand."""

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.stages.distill import closed_forms, losses
from armada.stages.distill.losses.features import norm_direction_loss
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import FeatureOptions
from armada.stages.distill.projectors import MLPProjector, make_projector
from pydantic import ValidationError


def _rows(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator)


def test_norm_and_direction_by_hand() -> None:
    """Along the mean at half the teacher's length; at a right angle to it; along it, and longer."""
    student = torch.tensor([[1.0, 0], [0, 3], [5, 0]])
    teacher = torch.tensor([[0.0, 2], [1, 0], [1, 1]])
    mean = torch.tensor([[7.0, 0], [2, 0], [0.5, 0]])
    found = norm_direction_loss(student, teacher, mean).item()
    assert found == pytest.approx((0.5 + 1 + 0) / 3)


def test_norm_and_direction() -> None:
    """By NumPy, gradients, common scale and rotation; zero vectors."""
    student, teacher, mean = _rows(6, 4, 0), _rows(6, 4, 1), _rows(6, 4, 2)
    s, t, c = (each.numpy() for each in (student, teacher, mean))
    expected = np.mean(
        [
            1 - x @ z / np.linalg.norm(z) / max(np.linalg.norm(x), np.linalg.norm(y))
            for x, y, z in zip(s, t, c, strict=True)
        ]
    )
    found = norm_direction_loss(student, teacher, mean)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    turned = 3 * torch.linalg.qr(_rows(4, 4, 3))[0]
    changed = norm_direction_loss(student @ turned, teacher @ turned, mean @ turned / 9)
    torch.testing.assert_close(changed, found)
    best = norm_direction_loss(2 * mean, mean, mean)
    assert best.item() == pytest.approx(0, abs=1e-15)
    inputs = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: norm_direction_loss(x, teacher, mean), inputs)
    zeros = torch.zeros(2, 4, requires_grad=True)
    value = norm_direction_loss(zeros, torch.zeros(2, 4), torch.zeros(2, 4))
    value.backward()
    assert value == 1
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()
    rounded = norm_direction_loss(student.bfloat16().float(), teacher.float(), mean.float())
    assert rounded.item() == pytest.approx(found.item(), rel=0.01)


def test_features_of_two_shapes_are_refused() -> None:
    kind = OBJECTIVES.load("norm_direction")
    sizes = Sizes(6, 3, False, (4,), more_shapes=((5,),))
    with pytest.raises(JobError, match=r"\(4,\) and \(5,\)"):
        kind(kind.Options(), sizes)


@pytest.mark.parametrize("form", [losses.feature_loss, closed_forms.feature_loss])
def test_smooth_l1(form) -> None:
    """Differences of 1/2, -3, 0 and 1: 1/8, 5/2, 0 and 1/2."""
    projection = torch.tensor([[0.5, -3.0], [0.0, 1.0]], dtype=torch.float64)
    more = {"output": None, "labels": None, "beta": 1.0, "regression": False}
    feature = torch.zeros(2, 2, dtype=torch.float64)

    def loss(projection: torch.Tensor) -> torch.Tensor:
        found = form(projection=projection, feature=feature, distance="smooth_l1", **more)
        total: torch.Tensor = found.total
        return total

    assert loss(projection).item() == pytest.approx((1 / 8 + 5 / 2 + 1 / 2) / 4)
    assert torch.autograd.gradcheck(loss, _rows(2, 2, 0).requires_grad_())


def test_projectors() -> None:
    torch.manual_seed(0)
    mlp = make_projector("feature", FeatureOptions(projector="mlp"), Sizes(3, 2, False, (5,)))
    assert isinstance(mlp, MLPProjector)
    x = torch.randn(4, 3)
    hidden = torch.nn.functional.gelu(x @ mlp.hidden.weight.T + mlp.hidden.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.output.weight.T + mlp.output.bias)
    for given in ({"projector": "orthogonal"}, {"orthogonal_projection": True}):
        square = make_projector("feature", FeatureOptions(**given), Sizes(4, 2, False, (4,)))
        torch.testing.assert_close(square.weight @ square.weight.T, torch.eye(4))
    with pytest.raises(ValidationError, match="no orthogonal map"):
        FeatureOptions(projector="mlp", orthogonal_projection=True)
