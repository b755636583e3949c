"""The closed forms beside the plain formulas: same terms, same gradients, in every setting."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from armada.stages.distill import closed_forms, losses
from torch import Tensor

TASKS = [pytest.param(False, id="classification"), pytest.param(True, id="regression")]
MISSING = [pytest.param(share, id=f"{share:.0%} missing") for share in (0.0, 0.4, 1.0)]
Loss = Callable[..., Any]


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def make_labels(rows: int, classes: int, regression: bool, missing: float) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    if regression:
        labels = 5 * torch.rand(rows, generator=generator)
    else:
        labels = torch.randint(classes, (rows,), generator=generator)
    labels[: round(missing * rows)] = torch.nan if regression else losses.MISSING_LABEL
    return labels


def outcome(loss: Loss, moving: dict[str, Tensor], scale: float, **fixed: Any) -> list[Tensor]:
    """All terms, then the gradient of the scaled total for each input that moves."""
    inputs = {name: tensor.clone().requires_grad_() for name, tensor in moving.items()}
    terms = loss(**inputs, **fixed)
    (scale * terms.total).backward()
    values = [getattr(terms, name).detach() for name in terms.__dataclass_fields__]
    gradients = [tensor.grad for tensor in inputs.values()]
    assert all(gradient is not None for gradient in gradients)
    return [*values, *gradients]  # type: ignore[list-item]


def compare(name: str, moving: dict[str, Tensor], scale: float = 1.0, **fixed: Any) -> None:
    plain = outcome(getattr(losses, name), moving, scale, **fixed)
    closed = outcome(getattr(closed_forms, name), moving, scale, **fixed)
    for one, other in zip(closed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def armada_inputs(
    rows: int, classes: int, dim: int, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    widths = {"output": classes, "aux_output": classes, "projection": dim}
    sides = [
        {
            f"{side}_{name}": numbers(rows, width, seed=seed, dtype=dtype)
            for seed, (name, width) in enumerate(widths.items(), start)
        }
        for side, start in (("student", 0), ("aligner", 3))
    ]
    return sides[0], sides[1]


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("manifold", ["cosine", "euclid", "pointwise"])
@pytest.mark.parametrize("regression", TASKS)
def test_armada(regression: bool, manifold: str, missing: float) -> None:
    for rows, weights in itertools.product(
        (1, 2, 33), ((0.3, 0.7, 0.4), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0))
    ):
        classes = 1 if regression else 4
        student, aligner = armada_inputs(rows, classes, 9)
        alpha, beta, gamma = weights
        compare(
            "armada_loss",
            student,
            scale=0.25,
            **aligner,
            labels=make_labels(rows, classes, regression, missing),
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            temperature=5.0,
            manifold=manifold,
            regression=regression,
        )


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("learned", [False, True])
def test_kd(learned: bool, missing: float) -> None:
    for rows, temperature, alpha in itertools.product((1, 7), (0.7, 4.0), (0.0, 0.3, 1.0)):
        moving = {"student_output": numbers(rows, 3, seed=0)}
        fixed: dict[str, Any] = {"temperature": temperature}
        if learned:
            moving["temperature"] = torch.tensor(fixed.pop("temperature"), dtype=torch.float64)
        compare(
            "kd_loss",
            moving,
            scale=3.0,
            teacher_logits=numbers(rows, 3, seed=1),
            labels=make_labels(rows, 3, False, missing),
            alpha=alpha,
            **fixed,
        )


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("distance", ["mse", "mae", "cosine"])
@pytest.mark.parametrize("regression", TASKS)
def test_feature(regression: bool, distance: str, missing: float) -> None:
    for rows, beta in itertools.product((1, 7), (0.0, 0.6)):
        classes = 1 if regression else 3
        compare(
            "feature_loss",
            {
                "projection": numbers(rows, 8, seed=0),
                "output": numbers(rows, classes, seed=1),
            },
            feature=numbers(rows, 8, seed=2),
            labels=make_labels(rows, classes, regression, missing),
            beta=beta,
            distance=distance,
            regression=regression,
        )


def test_feature_alone() -> None:
    compare(
        "feature_loss",
        {"projection": numbers(4, 8, seed=0)},
        feature=numbers(4, 8, seed=2),
        output=None,
        labels=None,
        beta=0.6,
        distance="cosine",
        regression=False,
    )


@pytest.mark.parametrize("manifold", ["cosine", "euclid", "pointwise"])
@pytest.mark.parametrize("regression", TASKS)
def test_half_precision_loses_no_more_than_the_inputs_do(regression: bool, manifold: str) -> None:
    """bf16 inputs against the same numbers in float64: terms are right to float32, gradients to
    the half unit in the last place of the bf16 they are returned in."""
    classes = 1 if regression else 4
    student, aligner = armada_inputs(64, classes, 32, torch.bfloat16)
    settings: dict[str, Any] = {
        "labels": make_labels(64, classes, regression, 0.3),
        "alpha": 0.5,
        "beta": 1.0,
        "gamma": 1.0,
        "temperature": 5.0,
        "manifold": manifold,
        "regression": regression,
    }
    half = outcome(closed_forms.armada_loss, student, 1.0, **aligner, **settings)
    wide_student, wide_aligner = (
        {name: tensor.double() for name, tensor in side.items()} for side in (student, aligner)
    )
    wide = outcome(losses.armada_loss, wide_student, 1.0, **wide_aligner, **settings)
    for term, expected in zip(half[:4], wide[:4], strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term.double(), expected, rtol=2e-6, atol=1e-7)
    for gradient, expected in zip(half[4:], wide[4:], strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.double(), expected, rtol=2**-8, atol=1e-8)


def test_the_graph_has_one_step() -> None:
    student, aligner = armada_inputs(4, 3, 5)
    inputs = {name: tensor.requires_grad_() for name, tensor in student.items()}
    terms = closed_forms.armada_loss(
        **inputs,
        **aligner,
        labels=make_labels(4, 3, False, 0.0),
        alpha=0.5,
        beta=1.0,
        gamma=1.0,
        temperature=5.0,
        manifold="cosine",
        regression=False,
    )
    step = terms.total.grad_fn
    assert step is not None
    assert [type(below).__name__ for below, _ in step.next_functions if below is not None] == [
        "AccumulateGrad"
    ] * 3
    assert not any(term.requires_grad for term in (terms.task, terms.output, terms.manifold))
