"""Losses of relations between the rows of a batch, against NumPy in float64 and by hand."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from armada.stages.distill.losses.relations import (
    cka_loss,
    in_batch_loss,
    mmd_loss,
    prototype_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    similarity_preserving_loss,
)


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


def test_products_by_hand() -> None:
    """Products (1, 0), (0, 1) against (1, 1), (1, 1) of length √2: each row differs by (1 - √½)² +
    ½ = 2 - √2, and the mean is over four numbers."""
    student, teacher = torch.eye(2), torch.ones(2, 1)
    found = similarity_preserving_loss(student, teacher).item()
    assert found == pytest.approx(1 - 0.5**0.5)


def test_distributions_by_hand() -> None:
    """Cosines to the others at temperature 1: student (1, 0), (1, 0), (0, 0), teacher (0, 0),
    (0, 1), (0, 1); with a = e / (1 + e) and b = 1 - a."""
    student = torch.tensor([[2.0, 0], [1, 0], [0, 1]])
    teacher = torch.tensor([[2.0, 0], [0, 1], [0, 3]])
    a = math.e / (1 + math.e)
    b = 1 - a
    first = -math.log(2) - math.log(a * b) / 2
    second = a - b  # of (b, a) and (a, b), as log(a / b) = 1
    third = a * math.log(2 * a) + b * math.log(2 * b)
    found = in_batch_loss(student, teacher, 1.0).item()
    assert found == pytest.approx((first + second + third) / 3)


def test_alignment_by_hand() -> None:
    """Centred already: (1, -1, 0) and (1, 0, -1), of which K and L are the outer products: <K, L> =
    1, |K| = |L| = 2."""
    student, teacher = torch.tensor([[1.0], [-1], [0]]), torch.tensor([[1.0], [0], [-1]])
    assert cka_loss(student, teacher, debiased=False).item() == pytest.approx(3 / 4)
    assert cka_loss(student + 5, 3 * teacher - 2, debiased=False).item() == pytest.approx(3 / 4)


def test_discrepancy_by_hand() -> None:
    """A neuron of the student, (0.6, 0.8) when its length is 1, and two of the teacher, (1, 0) and
    (0, 1), whose squared distances 0, 2, 2, 0 have the mean 1."""
    student, teacher = torch.tensor([[3.0], [4]]), 7 * torch.eye(2)
    linear = 1 - 2 * 0.7 + 1 / 2
    poly = 1 - (0.6**2 + 0.8**2) + 1 / 2
    gaussian = 1 - (math.exp(-0.4) + math.exp(-0.2)) + (1 + math.exp(-1)) / 2
    assert mmd_loss(student, teacher, "linear").item() == pytest.approx(linear)
    assert mmd_loss(student, teacher, "poly").item() == pytest.approx(poly)
    assert mmd_loss(student, teacher, "gaussian").item() == pytest.approx(gaussian)


def test_assignments_by_hand() -> None:
    """Cosines 1 and 0 to two prototypes against similarities 0 and log 3: (e, 1) / (e + 1) against
    (1/4, 3/4)."""
    student, prototypes = torch.tensor([[2.0, 0]]), torch.tensor([[5.0, 0], [0, 1]])
    teacher = torch.tensor([[0.0, 2 * math.log(3)]])
    p, q = (0.25, 0.75), (math.e / (1 + math.e), 1 / (1 + math.e))
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = prototype_loss(student, prototypes, teacher, 1.0, 2.0).item()
    assert found == pytest.approx(expected)


def test_assignments() -> None:
    """By NumPy, gradients, scale and rotation, the best at equal assignments."""
    student, prototypes, teacher = _rows(6, 4, 0), _rows(3, 4, 1), _rows(6, 3, 2)
    logits = _unit(student.numpy()) @ _unit(prototypes.numpy()).T / 0.3
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (teacher.numpy() / 2, logits))
    expected = (p * np.log(p / q)).sum() / 6
    found = prototype_loss(student, prototypes, teacher, 0.3, 2.0)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    turned = torch.linalg.qr(_rows(4, 4, 3))[0]
    same = prototype_loss(3 * student @ turned, prototypes @ turned, teacher, 0.3, 2.0)
    torch.testing.assert_close(same, found)
    best = prototype_loss(student, prototypes, torch.tensor(logits) * 2 + 5, 0.3, 2.0)
    assert best.item() == pytest.approx(0, abs=1e-14)
    inputs = (student.requires_grad_(), prototypes.requires_grad_())
    assert torch.autograd.gradcheck(lambda s, c: prototype_loss(s, c, teacher, 0.3, 2.0), inputs)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _similarity_preserving(s: np.ndarray, t: np.ndarray) -> float:
    return float(((_unit(s @ s.T) - _unit(t @ t.T)) ** 2).sum() / len(s) ** 2)


def _in_batch(s: np.ndarray, t: np.ndarray, temperature: float) -> float:
    total = 0.0
    for i in range(len(s)):
        others = [j for j in range(len(s)) if j != i]
        p, q = (np.exp([_unit(x)[i] @ _unit(x)[j] / temperature for j in others]) for x in (t, s))
        p, q = p / p.sum(), q / q.sum()
        total += (p * np.log(p / q)).sum()
    return total / len(s)


def test_texts_that_come_again_are_no_others() -> None:
    """Rows 0 and 2 have one text, and rows 1, 3 and 4 another; then all have one."""
    student, teacher = _rows(5, 3, 0), _rows(5, 4, 1)
    texts = np.array([7, 3, 7, 3, 3])
    same = torch.from_numpy((texts[:, None] == texts) & ~np.eye(5, dtype=bool))
    total = 0.0
    for i in range(5):
        others = np.flatnonzero(texts != texts[i])
        p, q = (
            np.exp(_unit(x.numpy())[others] @ _unit(x.numpy())[i] / 0.3) for x in (teacher, student)
        )
        p, q = p / p.sum(), q / q.sum()
        total += (p * np.log(p / q)).sum()
    found = in_batch_loss(student, teacher, 0.3, same).item()
    assert found == pytest.approx(total / 5, rel=1e-12)
    inputs = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: in_batch_loss(s, teacher, 0.3, same), inputs)
    alone = in_batch_loss(inputs, teacher, 0.3, ~torch.eye(5, dtype=torch.bool))
    alone.backward()
    assert alone.item() == 0
    assert not inputs.grad.any()


def _cka(s: np.ndarray, t: np.ndarray, debiased: bool) -> float:
    """By the estimators of the Hilbert-Schmidt independence criterion as they are published."""
    n = len(s)
    centre, one = np.eye(n) - 1 / n, np.ones(n)

    def biased(k: np.ndarray, m: np.ndarray) -> float:
        return float(np.trace(k @ centre @ m @ centre) / (n - 1) ** 2)

    def unbiased(k: np.ndarray, m: np.ndarray) -> float:
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        inner = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / (n - 1) / (n - 2)
        return float((inner - 2 / (n - 2) * one @ k @ m @ one) / n / (n - 3))

    hsic = unbiased if debiased else biased
    k, m = s @ s.T, t @ t.T
    return 1 - hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def _mmd(s: np.ndarray, t: np.ndarray, kernel: str) -> float:
    a, b = _unit(s.T), _unit(t.T)
    spread = np.mean([((x - y) ** 2).sum() for x in b for y in b])

    def k(x: np.ndarray, y: np.ndarray) -> float:
        if kernel == "gaussian":
            return float(np.exp(-((x - y) ** 2).sum() / (2 * spread)))
        return float((x @ y) ** (2 if kernel == "poly" else 1))

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean([k(x, y) for x in one for y in other]))

    return mean(a, a) - 2 * mean(a, b) + mean(b, b)


Loss = Callable[..., torch.Tensor]
SIMILAR, PER_ROW, PER_NEURON = "scale, rotation", "scale of rows, rotation", "scale of neurons"
SHIFTED = "scale, rotation, shift"
LOSSES: dict[str, tuple[Loss, Callable[..., float] | None, str]] = {
    "rkd distance": (rkd_distance_loss, None, SHIFTED),
    "rkd angle": (rkd_angle_loss, None, SHIFTED),
    "similarity_preserving": (similarity_preserving_loss, _similarity_preserving, SIMILAR),
    "in_batch": (
        partial(in_batch_loss, temperature=0.3),
        partial(_in_batch, temperature=0.3),
        PER_ROW,
    ),
    "cka": (partial(cka_loss, debiased=False), partial(_cka, debiased=False), SHIFTED),
    "debiased cka": (partial(cka_loss, debiased=True), partial(_cka, debiased=True), SHIFTED),
    **{
        f"{kernel} mmd": (
            partial(mmd_loss, kernel=kernel),
            partial(_mmd, kernel=kernel),
            PER_NEURON,
        )
        for kernel in ("linear", "poly", "gaussian")
    },
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def _changed(rows: torch.Tensor, how: str) -> torch.Tensor:
    """Rows to which the loss should be blind."""
    draw = torch.Generator().manual_seed(9)
    if how == PER_NEURON:
        factors = torch.rand(rows.shape[1], dtype=torch.float64, generator=draw) + 0.5
        return (rows * factors)[:, torch.randperm(rows.shape[1], generator=draw)]
    turned = 3 * rows @ torch.linalg.qr(_rows(rows.shape[1], rows.shape[1], 2))[0]
    if how == PER_ROW:
        return turned * (torch.rand(len(rows), 1, dtype=torch.float64, generator=draw) + 0.5)
    return turned + 2 if how == SHIFTED else turned


@each_loss
def test_numpy_finds_the_same(name: str) -> None:
    loss, reference, _ = LOSSES[name]
    if reference is None:
        return  # `test_a_second_computation`
    student, teacher = _rows(6, 4, 0), _rows(6, 7, 1)
    expected = reference(student.numpy(), teacher.numpy())
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-11)


@each_loss
def test_invariances_optimum_and_gradient(name: str) -> None:
    """What a loss is blind to changes nothing on either side; a student that differs from the
    teacher in that alone has the loss 0, and no gradient."""
    loss, _, blind = LOSSES[name]
    student, teacher = _rows(6, 4, 0), _rows(6, 7, 1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for changed in (
        (_changed(student, blind), teacher),
        (student, _changed(teacher, blind)),
        (student[order], teacher[order]),
    ):
        torch.testing.assert_close(loss(*changed), loss(student, teacher))
    at_best = student.clone().requires_grad_()
    best = loss(at_best, _changed(student, blind))
    assert best.item() == pytest.approx(0, abs=1e-14)
    best.backward()
    torch.testing.assert_close(at_best.grad, torch.zeros_like(student))
    assert loss(student, teacher) > 1e-3
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student.clone().requires_grad_())


@each_loss
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_too_few_equal_and_zero_rows_have_no_loss_of_nan(name: str, rows: int) -> None:
    loss, _, _ = LOSSES[name]
    for fill in (0.0, 1.0):
        for teacher in (_rows(rows, 2, 0).float(), torch.full((rows, 2), fill)):
            student = torch.full((rows, 3), fill, requires_grad=True)
            value = loss(student, teacher)
            value.backward()
            assert value.isfinite()
            assert student.grad is not None
            assert student.grad.isfinite().all()


def test_one_row_has_no_relations() -> None:
    """Of the losses that compare pairs or triples of different rows."""
    student, teacher = _rows(1, 3, 0), _rows(1, 2, 1)
    for name in ("rkd distance", "rkd angle", "in_batch"):
        assert LOSSES[name][0](student, teacher) == 0


def test_independent_rows_have_no_debiased_alignment() -> None:
    """Where the plain alignment of 16 rows of 64 numbers is mostly that of their number."""
    pairs = [(_rows(16, 64, 2 * seed), _rows(16, 64, 2 * seed + 1)) for seed in range(20)]
    plain = np.mean([1 - cka_loss(*pair, debiased=False).item() for pair in pairs])
    debiased = np.mean([1 - cka_loss(*pair, debiased=True).item() for pair in pairs])
    assert plain > 0.7
    assert abs(debiased) < 0.05


@each_loss
def test_what_bf16_costs(name: str) -> None:
    """Texts that a student computes in bf16, 3 digits of them: the loss is within 1 % of that of
    the whole numbers."""
    loss, _, _ = LOSSES[name]
    student, teacher = _rows(32, 64, 0), _rows(32, 96, 1)
    rounded = loss(student.bfloat16().float(), teacher.float()).item()
    assert rounded == pytest.approx(loss(student, teacher).item(), rel=0.01)


@pytest.mark.slow
def test_torchdistill_agrees() -> None:
    """But for what differs from the papers there: means include each row with itself, and products
    are divided by the sum of a row instead of by its length."""
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    rows = 6
    student, teacher = _rows(rows, 4, 0), _rows(rows, 7, 1)
    outputs = [{"layer": {"output": each}} for each in (student, teacher)]
    distance = losses.RKDLoss("layer", "layer", 1, 0, "mean")(*outputs).item()
    share = (rows - 1) / rows
    assert share * rkd_distance_loss(student, teacher).item() == pytest.approx(distance, rel=1e-9)
    angle = losses.RKDLoss("layer", "layer", 0, 1, "mean")(*outputs).item()
    share *= (rows - 2) / rows
    # Its triples i, j, i have the cosine 1 on both sides, and those with j twice 0.
    assert share * rkd_angle_loss(student, teacher).item() == pytest.approx(angle, rel=1e-9)
    found = losses.SPKDLoss("layer", "layer", "batchmean")(*outputs).item()
    sums = [(x @ x.T) / (x @ x.T).abs().sum(dim=1, keepdim=True) for x in (student, teacher)]
    assert (sums[0] - sums[1]).square().mean().item() == pytest.approx(found, rel=1e-9)
    assert similarity_preserving_loss(student, teacher).item() != pytest.approx(found, rel=0.1)
