"""Losses of relations between the rows of a batch, against NumPy in float64 and by hand."""

import numpy as np
import pytest
import torch
from armada.stages.distill.losses.relations import rkd_angle_loss, rkd_distance_loss


def _rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(
        count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def _huber(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def test_distances_by_hand() -> None:
    """Student 0, 1, 3: distances 1, 2, 3 of mean 2; teacher 0, 2, 4: 2, 2, 4 of mean 8/3. So
    (1/2, 1, 3/2) and (3/4, 3/4, 3/2) of them: halved squares of 1/4, 1/4 and 0."""
    student, teacher = torch.tensor([[0.0], [1], [3]]), torch.tensor([[0.0], [2], [4]])
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(1 / 48)


def test_angles_by_hand() -> None:
    """A right-angled triangle against three points in a line: cosines (0, √½, √½) against (-1, 1,
    1)."""
    student = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    teacher = torch.tensor([[0.0], [1], [-1]])
    expected = (0.5 + 2 * (1 - 0.5**0.5) ** 2 / 2) / 3
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(expected)


def test_a_second_computation() -> None:
    student, teacher = _rows(5, 4, 0), _rows(5, 7, 1)

    def distances(x: np.ndarray) -> np.ndarray:
        d = np.array([np.linalg.norm(x[i] - x[j]) for i in range(5) for j in range(5) if i != j])
        return d / d.mean()

    def cosines(x: np.ndarray) -> np.ndarray:
        found = []
        for i, j, k in np.ndindex(5, 5, 5):
            if len({i, j, k}) == 3:
                one, other = x[i] - x[j], x[k] - x[j]
                found.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        return np.array(found)

    s, t = student.numpy(), teacher.numpy()
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(
        _huber(distances(s) - distances(t)).mean(), rel=1e-12
    )
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(
        _huber(cosines(s) - cosines(t)).mean(), rel=1e-12
    )


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
def test_invariances_optimum_and_gradient(loss) -> None:
    """Scale, shift and rotation of either side change nothing; similar figures have loss 0."""
    student, teacher = _rows(5, 4, 0), _rows(5, 7, 1)
    turned = 3 * student @ torch.linalg.qr(_rows(4, 4, 2))[0] + 2
    torch.testing.assert_close(loss(turned, teacher), loss(student, teacher))
    at_best = student.clone().requires_grad_()
    best = loss(at_best, turned)
    assert best.item() == pytest.approx(0, abs=1e-20)
    best.backward()
    torch.testing.assert_close(at_best.grad, torch.zeros_like(student))
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student.clone().requires_grad_())


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_too_few_and_equal_rows_have_no_loss_of_nan(loss, rows: int) -> None:
    student = torch.ones(rows, 3, requires_grad=True)
    value = loss(student, _rows(rows, 2, 0).float())
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert rows > 1 or value == 0
