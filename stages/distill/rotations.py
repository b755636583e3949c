"""Orthogonal maps applied to points without their matrix, in time that grows with the points.

In: points [B, H] and a square parameter X [H, H] whose lower triangle S gives A = S - Sᵀ, as in
torch.nn.utils.parametrizations.orthogonal. Out: R(A) applied to each point, with gradients.

    matrix_exp  R(A) = exp(A)
    cayley      R(A) = (I - A/2)⁻¹ (I + A/2)

To work out exp(A) and its derivative for H = 1024 takes a second on two cores; a batch needs only
what it does to the batch. A is skew, its eigenvalues are iω, and with Bessel functions J and a
radius r ≥ |ω|

    exp(tA) = J₀(tr) + 2 Σ_k J_k(tr) φ_k,    φ₁ = A/r,    φ_k+1 = 2 A/r φ_k + φ_k-1

(Tal-Ezer and Kosloff, J. Chem. Phys. 81, 1984): each term is one product with A, none is larger
than the point, and a few more than r of them reach the last digit. The derivative is the integral
of exp((1 - t)A)ᵀ g · (exp(tA) x)ᵀ over t in [0, 1] (Najfeld and Havel, Adv. Appl. Math. 16, 1995),
by Gauss and Legendre to the last digit too.
"""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import jv
from torch import Tensor

OrthogonalMap = Literal["matrix_exp", "cayley"]
"""Not torch's householder, its choice for maps that are not square: it keeps the signs of Q as ones
on the diagonal of a parameter and reads them as integers, so that a single step with weight decay
turns 1 into 0.99, reads 0, and Q is zero from then on."""

Times = npt.NDArray[np.float64]

_LAST_TERM = 8
"""In units of the last digit: what is left out is less than what rounding leaves."""

_PROBES, _POWER_STEPS, _MARGIN = 2, 5, 1.15
"""How the radius is estimated; an estimate that was too small only costs a second try."""


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
    turned_HB: Tensor = torch.linalg.solve(identity - skew_HH / 2, ahead_HB)
    return turned_HB.mT


class _Skew(torch.autograd.Function):
    """S - Sᵀ of a lower triangle S."""

    @staticmethod
    def forward(ctx: Any, parameter_HH: Tensor) -> Tensor:
        return _less_its_transpose(parameter_HH.tril())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_HH: Tensor) -> Tensor:
        return _less_its_transpose(gradient_HH).tril_()


def _less_its_transpose(matrix_HH: Tensor) -> Tensor:
    # To copy the transpose and write over it is a third of the time of the plain difference.
    transposed_HH = matrix_HH.mT.contiguous()
    return torch.sub(matrix_HH, transposed_HH, out=transposed_HH)


class _Exponential(torch.autograd.Function):
    """exp(A) of each point."""

    @staticmethod
    def forward(ctx: Any, points_BH: Tensor, skew_HH: Tensor) -> Tensor:
        estimate, probes = _estimated_radius(skew_HH)
        together = torch.cat((points_BH, probes))
        for radius in (estimate, _bound(skew_HH)):
            times, weights = _gauss_legendre(_nodes(radius, skew_HH.dtype))
            flows = _flows(together, skew_HH, np.append(times, 1.0), radius)
            if _keep_norms(flows[:, -len(probes) :], probes, radius):
                break
        flows = flows[:, : -len(probes)]
        ctx.radius, ctx.times, ctx.weights = radius, times, weights
        ctx.save_for_backward(skew_HH, flows[:-1])
        return flows[-1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BH: Tensor) -> tuple[Tensor, Tensor]:
        skew_HH, flows = ctx.saved_tensors
        back = _flows(gradient_BH, skew_HH.mT, np.append(1 - ctx.times, 1.0), ctx.radius)
        weights = torch.from_numpy(ctx.weights).to(back)
        weighted = back[:-1] * weights[:, None, None]
        return back[-1], weighted.flatten(0, 1).mT @ flows.flatten(0, 1)


def _nodes(radius: float, dtype: torch.dtype) -> int:
    """As many as make the integral exact: n of them integrate a polynomial of degree 2n - 1."""
    if not math.isfinite(radius):
        return 1
    terms = len(_coefficients(np.ones(1), radius, dtype)[0])
    return (terms + 1) // 2


def _gauss_legendre(nodes: int) -> tuple[Times, Times]:
    """Times and weights on [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return (places + 1) / 2, weights / 2


def _flows(points_BH: Tensor, skew_HH: Tensor, times: Times, radius: float) -> Tensor:
    """exp(tA) of each point at each time t in [0, 1]: [times, B, H]."""
    if not math.isfinite(radius):
        return points_BH.new_full((len(times), *points_BH.shape), math.nan)
    coefficients = _coefficients(times, radius, points_BH.dtype)
    terms = points_BH.new_empty(coefficients.shape[1], *points_BH.shape)
    terms[0] = points_BH
    # A row is a point, and xᵀAᵀ = -xᵀA.
    for k in range(1, len(terms)):
        before, factor = (terms[k - 2], 2) if k > 1 else (torch.zeros_like(points_BH), 1)
        torch.addmm(before, terms[k - 1], skew_HH, alpha=-factor / radius, out=terms[k])
    weights = torch.from_numpy(coefficients).to(terms)
    return (weights @ terms.flatten(1)).view(-1, *points_BH.shape)


def _coefficients(times: Times, radius: float, dtype: torch.dtype) -> Times:
    """[times, terms]: those of the expansion that count in a dtype."""
    # J_k(r) falls faster than any power once k is above r.
    orders = np.arange(int(radius) + 64)
    found = np.where(orders > 0, 2, 1) * jv(orders, times[:, None] * radius)
    counts = np.abs(found).max(axis=0) > _LAST_TERM * torch.finfo(dtype).eps
    return np.asarray(found[:, : np.flatnonzero(counts)[-1] + 1])


def _estimated_radius(skew_HH: Tensor) -> tuple[float, Tensor]:
    """The largest |ω|, by the power method from vectors without structure, with a margin; and
    those vectors, which show by their growth if it was too small for all that."""
    size = len(skew_HH)
    vectors = skew_HH.new_tensor(range(_PROBES * size)).sin().view(_PROBES, size)
    for _ in range(_POWER_STEPS):
        probes = torch.nn.functional.normalize(vectors, dim=1)
        vectors = probes @ skew_HH
    found = float(torch.linalg.vector_norm(vectors, dim=1).max())
    # The largest is no less than the root of the mean square.
    return max(_MARGIN * found, _bound(skew_HH) * math.sqrt(2 / size)), probes


def _bound(skew_HH: Tensor) -> float:
    """No |ω| is larger: they come in pairs of both signs, and the sum of all their squares is that
    of the entries."""
    return float(torch.linalg.vector_norm(skew_HH)) / math.sqrt(2)


def _keep_norms(flows: Tensor, points: Tensor, radius: float) -> bool:
    """As exp(tA) does, unless terms have grown because the radius was too small."""
    expected = torch.linalg.vector_norm(points, dim=1)
    difference = (torch.linalg.vector_norm(flows, dim=2) - expected).abs().max()
    rounding = torch.finfo(points.dtype).eps * (1 + radius)
    return bool(difference <= 100 * rounding * expected.max())
