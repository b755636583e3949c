"""Orthogonal maps applied to points: as their matrices do it, values and gradients alike."""

import math

import pytest
import torch
from armada.stages.distill import rotations
from armada.stages.distill.aligner import ProjectionHead
from armada.stages.distill.rotations import rotate
from torch import Tensor

MAPS = ["matrix_exp", "cayley"]


def skew_of(parameter: Tensor) -> Tensor:
    return parameter.tril() - parameter.tril().T


def matrix_of(parameter: Tensor, orthogonal_map: str) -> Tensor:
    skew = skew_of(parameter)
    if orthogonal_map == "matrix_exp":
        return torch.matrix_exp(skew)
    identity = torch.eye(len(skew), dtype=skew.dtype)
    return torch.linalg.solve(identity - skew / 2, identity + skew / 2)


def drawn(size: int, radius: float, rows: int = 5) -> tuple[Tensor, Tensor]:
    """Points, and a parameter whose largest frequency is `radius`."""
    generator = torch.Generator().manual_seed(size)
    parameter = torch.randn(size, size, generator=generator, dtype=torch.float64)
    parameter *= radius / torch.linalg.matrix_norm(skew_of(parameter), 2)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64), parameter


@pytest.mark.parametrize("orthogonal_map", MAPS)
@pytest.mark.parametrize("radius", [1e-9, 0.1, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("size", [2, 3, 40])
def test_values_and_gradients_of_the_matrix(size, radius, orthogonal_map):
    points, parameter = drawn(size, radius)
    inputs = (points.requires_grad_(), parameter.requires_grad_())
    weights = torch.linspace(-1, 2, points.numel(), dtype=torch.float64).view_as(points)
    got = rotate(points, parameter, orthogonal_map)
    expected = points @ matrix_of(parameter, orthogonal_map).T
    # matrix_exp itself loses digits as it squares, about one for each factor of ten.
    within = {"rtol": 0, "atol": 1e-11 * max(1.0, radius)}
    torch.testing.assert_close(got, expected, **within)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **within)


@pytest.mark.parametrize(
    "radius", [30.0, 300.0, 1000.0, pytest.param(3000.0, marks=pytest.mark.slow)]
)
def test_many_turns(radius):
    points, parameter = drawn(40, radius)
    # -iA is Hermitian; its eigenvectors give the exponential without squaring anything.
    frequencies, planes = torch.linalg.eigh(-1j * skew_of(parameter).to(torch.complex128))
    matrix = (planes * torch.exp(1j * frequencies) @ planes.mH).real
    got = rotate(points, parameter, "matrix_exp")
    # A frequency has some 16 digits, so a phase loses what it has before the point.
    torch.testing.assert_close(got, points @ matrix.T, rtol=0, atol=1e-13 * radius)


@pytest.mark.parametrize("orthogonal_map", MAPS)
@pytest.mark.parametrize("rows", [1, 3])
def test_gradcheck(rows, orthogonal_map):
    points, parameter = drawn(6, 2.0, rows)
    inputs = (points.requires_grad_(), parameter.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, p: rotate(x, p, orthogonal_map), inputs)


def test_float32_is_closer_to_the_truth_than_the_matrix():
    points, parameter = drawn(256, 4.0, 32)
    weights = torch.linspace(-1, 2, points.numel(), dtype=torch.float64).view_as(points)

    def by_matrix(points: Tensor, parameter: Tensor) -> Tensor:
        return points @ torch.matrix_exp(skew_of(parameter)).T

    def by_rotation(points: Tensor, parameter: Tensor) -> Tensor:
        return rotate(points, parameter, "matrix_exp")

    def answers(way, dtype: torch.dtype) -> list[Tensor]:
        asked = parameter.to(dtype).detach().requires_grad_()
        turned = way(points.to(dtype), asked)
        return [turned.detach(), *torch.autograd.grad(turned, asked, weights.to(dtype))]

    truth = answers(by_matrix, torch.float64)
    ours, theirs = (
        [
            float((found - true).norm() / true.norm())
            for found, true in zip(each, truth, strict=True)
        ]
        for each in (answers(by_rotation, torch.float32), answers(by_matrix, torch.float32))
    )
    assert max(ours) < 1e-6
    assert ours[0] < theirs[0]
    assert ours[1] < theirs[1] / 100


@pytest.mark.parametrize("orthogonal_map", MAPS)
def test_no_rotation_at_all(orthogonal_map):
    points = torch.randn(4, 8).requires_grad_()
    parameter = torch.zeros(8, 8, requires_grad=True)
    turned = rotate(points, parameter, orthogonal_map)
    assert torch.equal(turned, points)
    gradient = torch.randn(4, 8)
    turned.backward(gradient)
    # The derivative at zero: A moves a point x by A x.
    outer = gradient.T @ points.detach()
    torch.testing.assert_close(parameter.grad, (outer - outer.T).tril())
    torch.testing.assert_close(points.grad, gradient)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.8])
def test_a_radius_that_was_too_small_is_noticed(monkeypatch, margin):
    points, parameter = drawn(40, 20.0)
    expected = points @ matrix_of(parameter, "matrix_exp").T
    monkeypatch.setattr(rotations, "_MARGIN", margin)
    inputs = (parameter.requires_grad_(),)
    got = rotate(points, parameter, "matrix_exp")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    expected = points @ matrix_of(parameter, "matrix_exp").T
    gradients = [torch.autograd.grad(value.sin().sum(), inputs)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)


def test_a_radius_that_was_too_small_for_the_gradients_only(monkeypatch):
    """Points in a plane that hardly turns, gradients in one that does."""
    parameter = torch.zeros(4, 4, dtype=torch.float64)
    parameter[1, 0], parameter[3, 2] = 0.1, 20.0
    parameter.requires_grad_()
    monkeypatch.setattr(rotations, "_MARGIN", 0.05)
    points = torch.tensor([[1.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    gradient = torch.tensor([[0.0, 0.0, 1.0, 3.0]], dtype=torch.float64)
    (got,) = torch.autograd.grad(rotate(points, parameter, "matrix_exp"), parameter, gradient)
    expected = points @ matrix_of(parameter, "matrix_exp").T
    (wanted,) = torch.autograd.grad(expected, parameter, gradient)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_numbers_that_are_not_finite_come_out_as_such(broken):
    parameter = torch.zeros(4, 4)
    parameter[2, 1] = broken
    parameter.requires_grad_()
    turned = rotate(torch.ones(2, 4), parameter, "matrix_exp")
    assert turned.isnan().all()
    turned.sum().backward()
    assert parameter.grad.isnan().any()


def test_points_of_another_dtype_and_autocast():
    points, parameter = drawn(16, 1.0)
    expected = points @ matrix_of(parameter, "matrix_exp").T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        turned = rotate(points.half(), parameter.float(), "matrix_exp")
    assert turned.dtype == torch.float32
    torch.testing.assert_close(turned, expected.float(), rtol=0, atol=5e-3)
    assert turned.norm(dim=1).sub(points.half().float().norm(dim=1)).abs().max() < 1e-5


@pytest.mark.parametrize("orthogonal_map", MAPS)
def test_a_head_that_trains_answers_as_its_weight(orthogonal_map):
    torch.manual_seed(0)
    head = ProjectionHead(12, 12, True, orthogonal_map, bias=True).double()
    with torch.no_grad():
        head.parametrizations.weight.original.add_(torch.randn(12, 12))
    input = torch.randn(3, 12).double()
    turned = head(input)
    torch.testing.assert_close(turned, input @ head.weight.T + head.bias, rtol=0, atol=1e-12)
    head.requires_grad_(False)
    torch.testing.assert_close(head(input), turned, rtol=0, atol=1e-12)
