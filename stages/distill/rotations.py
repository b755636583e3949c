"""Orthogonal maps applied to points without their matrix, in time that grows with the points.

In: points [B, H] and a square parameter X [H, H] whose lower triangle S gives A = S - Sᵀ, as in
torch.nn.utils.parametrizations.orthogonal. Out: R(A) applied to each point, with gradients.

    matrix_exp  R(A) = exp(A)
    cayley      R(A) = (I - A/2)⁻¹ (I + A/2)

Computing exp(A) and its derivative for H = 1024 takes a second on two cores; a batch needs only the
product with the batch. A is skew, its eigenvalues are iω, and with Bessel functions J and a radius
r ≥ |ω|

    exp(tA) = J₀(tr) + 2 Σ_k J_k(tr) φ_k,    φ₁ = A/r,    φ_k+1 = 2 A/r φ_k + φ_k-1

(Tal-Ezer and Kosloff, J. Chem. Phys. 81, 1984): each term is one product with A, none is larger
than the point, and a few more than r of them reach the last digit. The derivative is the integral
of exp((1 - t)A)ᵀ g · (exp(tA) x)ᵀ over t in [0, 1] (Najfeld and Havel, Adv. Appl. Math. 16, 1995),
by Gauss and Legendre to the last digit too.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import jv
from torch import Tensor

from .objectives.options import OrthogonalMap

"""Not torch's householder, its choice for maps that are not square: it keeps the signs of Q as ones
on the diagonal of a parameter and reads them as integers, so that a single step with weight decay
turns 1 into 0.99, reads 0, and Q is zero from then on."""

Times = npt.NDArray[np.float64]

_LAST_TERM = 8
"""In units of the last digit: the truncation error is below the rounding error."""

_VECTORS, _POWER_STEPS, _MARGIN = 2, 10, 1.2
"""Estimation of the radius; too small an estimate only costs a second try."""


def rotate(points_BH: Tensor, parameter_HH: Tensor, orthogonal_map: OrthogonalMap) -> Tensor:
    """R(A) of each point [B, H], in the parameter's dtype; both get gradients."""
    points_BH = points_BH.to(parameter_HH.dtype)
    # Autocast would round products to half precision, and the map would not be orthogonal.
    with torch.autocast(parameter_HH.device.type, enabled=False):
        skew_HH = _Skew.apply(parameter_HH)
        return (
            _cayley(points_BH, skew_HH) if orthogonal_map == "cayley" else _exp(points_BH, skew_HH)
        )


def _exp(points_BH: Tensor, skew_HH: Tensor) -> Tensor:
    turned: Tensor = _Exponential.apply(points_BH, skew_HH)
    return turned


def _cayley(points_BH: Tensor, skew_HH: Tensor) -> Tensor:
    identity = torch.eye(len(skew_HH), dtype=skew_HH.dtype, device=skew_HH.device)
    ahead_HB = torch.addmm(points_BH.mT, skew_HH, points_BH.mT, alpha=0.5)
    # Whether the matrix has an inverse, which it always has, would be read from the device.
    turned_HB: Tensor = torch.linalg.solve_ex(identity - skew_HH / 2, ahead_HB).result
    return turned_HB.mT


class _Skew(torch.autograd.Function):
    """S - Sᵀ of the lower triangle S of a parameter.

    A transpose is copied, then written over: every further matrix of fresh memory would take as
    long as all the rest."""

    @staticmethod
    def forward(ctx: Any, parameter_HH: Tensor) -> Tensor:
        below = torch.ones_like(parameter_HH, dtype=torch.bool).tril_(-1)
        skew_HH = parameter_HH.mT.contiguous().neg_()
        return torch.where(below, parameter_HH, skew_HH, out=skew_HH).fill_diagonal_(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_HH: Tensor) -> Tensor:
        transposed_HH = gradient_HH.mT.contiguous()
        return torch.sub(gradient_HH, transposed_HH, out=transposed_HH).tril_(-1)


class _Exponential(torch.autograd.Function):
    """exp(A) of each point. Points are columns here: products with A are a third faster so."""

    @staticmethod
    def forward(ctx: Any, points_BH: Tensor, skew_HH: Tensor) -> Tensor:
        points_HB = points_BH.mT.contiguous()
        radius = _estimated_radius(skew_HH)
        flows = _Flows(skew_HH, radius, points_HB)
        if not flows.keep_norms:
            flows = _Flows(skew_HH, _bound(skew_HH), points_HB)
        ctx.flows = flows.along, flows.radius
        ctx.save_for_backward(points_HB, skew_HH)
        return flows.ends.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BH: Tensor) -> tuple[Tensor, Tensor]:
        points_HB, skew_HH = ctx.saved_tensors
        gradient_HB = gradient_BH.mT.contiguous()
        along, radius = ctx.flows
        back = _Flows(skew_HH, radius, gradient_HB, backwards=True)
        if not back.keep_norms:
            radius = _bound(skew_HH)
            along = _Flows(skew_HH, radius, points_HB).along
            back = _Flows(skew_HH, radius, gradient_HB, backwards=True)
        return back.ends.mT, _side_by_side(back.weighted) @ _side_by_side(along.flip(0)).mT


class _Flows:
    """exp(tA) of points [H, B], or exp(-tA): `ends` at t = 1, `along` [nodes, H, B] at the nodes of
    an integral over t, which are symmetric."""

    def __init__(
        self, skew_HH: Tensor, radius: float, points_HB: Tensor, backwards: bool = False
    ) -> None:
        times, weights = _gauss_legendre(_nodes(radius, skew_HH.dtype))
        sign = -1 if backwards else 1
        flows = _expanded(points_HB, skew_HH, sign * np.append(times, 1.0), radius)
        self.radius, self._points_HB = radius, points_HB
        self.along, self.ends, self._weights = flows[:-1], flows[-1].clone(), weights

    @property
    def weighted(self) -> Tensor:
        """`along`, times the nodes' weights."""
        return self.along * torch.from_numpy(self._weights).to(self.along)[:, None, None]

    @property
    def keep_norms(self) -> bool:
        """Restore norms, which exp(tA) keeps, unless terms have grown because the radius was too
        small."""
        expected_B = torch.linalg.vector_norm(self._points_HB, dim=0)
        found_B = torch.linalg.vector_norm(self.ends, dim=0)
        rounding = torch.finfo(self.ends.dtype).eps * (1 + self.radius)
        return bool(((found_B - expected_B).abs() <= 100 * rounding * expected_B).all())


def _side_by_side(flows: Tensor) -> Tensor:
    """[nodes, H, B] -> [H, nodes · B]."""
    return flows.transpose(0, 1).flatten(1)


def _nodes(radius: float, dtype: torch.dtype) -> int:
    """Nodes that make the integral exact: n of them integrate a polynomial of degree 2n - 1."""
    if not math.isfinite(radius):
        return 1
    terms = len(_coefficients(np.ones(1), radius, dtype)[0])
    return (terms + 1) // 2


@cache
def _gauss_legendre(nodes: int) -> tuple[Times, Times]:
    """Times and weights on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return (points + 1) / 2, weights / 2


def _expanded(points_HB: Tensor, skew_HH: Tensor, times: Times, radius: float) -> Tensor:
    """exp(tA) of points at times t in [-1, 1]: [times, H, B]."""
    if not math.isfinite(radius):
        return points_HB.new_full((len(times), *points_HB.shape), math.nan)
    coefficients = _coefficients(times, radius, points_HB.dtype)
    terms = points_HB.new_empty(coefficients.shape[1], *points_HB.shape)
    terms[0] = points_HB
    if len(terms) > 1:
        torch.mm(skew_HH, points_HB, out=terms[1]).div_(radius)
    for k in range(2, len(terms)):
        torch.addmm(terms[k - 2], skew_HH, terms[k - 1], alpha=2 / radius, out=terms[k])
    weights = torch.from_numpy(coefficients).to(terms)
    return (weights @ terms.flatten(1)).view(-1, *points_HB.shape)


def _coefficients(times: Times, radius: float, dtype: torch.dtype) -> Times:
    """[times, terms]: those of the expansion that count in a dtype. J_k(-x) = (-1)^k J_k(x)."""
    # Once k is some cube roots of r above r, J_k(r) is nothing.
    orders = np.arange(int(radius + 20 * np.cbrt(radius)) + 40)
    found = np.where(orders > 0, 2, 1) * jv(orders, times[:, None] * radius)
    counts = np.abs(found).max(axis=0) > _LAST_TERM * torch.finfo(dtype).eps
    return np.asarray(found[:, : np.flatnonzero(counts)[-1] + 1])


def _estimated_radius(skew_HH: Tensor) -> float:
    """The largest |ω|, by the power method from vectors without structure, with a margin."""
    size = len(skew_HH)
    numbers = torch.arange(_VECTORS * size, dtype=skew_HH.dtype, device=skew_HH.device)
    vectors = numbers.sin().view(_VECTORS, size)
    for _ in range(_POWER_STEPS):
        vectors = torch.nn.functional.normalize(vectors, dim=1) @ skew_HH
    largest = torch.linalg.vector_norm(vectors, dim=1).max()
    # Read at once: the host waits for its device each time.
    found, norm = torch.stack((largest, torch.linalg.vector_norm(skew_HH))).tolist()
    bound = norm / math.sqrt(2)
    # Nor less than the root of their mean square.
    return float(min(max(_MARGIN * found, bound * math.sqrt(2 / size)), bound))


def _bound(skew_HH: Tensor) -> float:
    """No |ω| is larger: they come in pairs of both signs, and the sum of all their squares is that
    of the entries."""
    return float(torch.linalg.vector_norm(skew_HH)) / math.sqrt(2)
