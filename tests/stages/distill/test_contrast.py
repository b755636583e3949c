"""Contrastive losses against NumPy in float64, by hand, and against other packages."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada.cache_schemas.errors import JobError
from armada.stages.distill.losses.contrast import (
    crd_loss,
    infonce_loss,
    same_label,
    transport_loss,
    wcord_global_loss,
)
from armada.stages.distill.losses.relations import in_batch_loss
from armada.stages.distill.negatives import Negatives
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes, StudentSide

TAU = 0.3


def _rows(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


STUDENT, TEACHER = _rows(4, 5, 0), _rows(7, 5, 1)
MASKED = torch.zeros(4, 7, dtype=torch.bool)
MASKED[1, 3] = MASKED[2, 0] = MASKED[2, 6] = True


def test_infonce_by_hand() -> None:
    """Cosines 1 of its own and 0 of the other, and a negative of cosine -1, at temperature 1."""
    student, teacher = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [0, 5], [-3, 0]])
    first = math.log(1 + math.exp(-1) + math.exp(-2))
    second = math.log(1 + 2 * math.exp(-1))
    found = infonce_loss(student, teacher, 1.0).item()
    assert found == pytest.approx((first + second) / 2)


def test_infonce_both_ways() -> None:
    """Half of the loss of texts among features, drawn ones too, and half of that of the features of
    the batch among its texts, without what is masked."""
    made = _made("infonce", symmetric=True, similarity_temperature=TAU)
    pooled, features = _rows(4, 5, 0), _rows(7, 6, 1)
    loss, told = made.contrast(pooled, features, MASKED)
    student = made.projection(pooled)
    there = infonce_loss(student, features, TAU, MASKED)
    back = infonce_loss(features[:4], student, TAU, MASKED[:, :4].T)
    assert loss.item() == pytest.approx((there + back).item() / 2)
    assert told == {"infonce": there, "backward": back}
    logits = (_unit(features[:4].numpy()) @ _unit(student.detach().numpy()).T) / TAU
    logits[MASKED[:, :4].T.numpy()] = -np.inf
    own = np.log(np.exp(logits).sum(axis=1)) - logits.diagonal()
    assert back.item() == pytest.approx(own.mean())


def test_crd_by_hand() -> None:
    """One negative of 4 texts, N/M = 1/4: h = e/(e + 1/4) of its own, 1/(1 + 1/4) of the other."""
    student, teacher = torch.eye(2), torch.eye(2)
    expected = math.log((math.e + 0.25) / math.e) - math.log(0.25 / 1.25)
    assert crd_loss(student, teacher, 1.0, examples=4).item() == pytest.approx(expected)


def test_wcord_by_hand() -> None:
    """g = 1/√2 of their own, 0 and -1/√2 of the others."""
    student = torch.eye(2)
    assert wcord_global_loss(student, student).item() == pytest.approx(-(0.5**0.5))
    opposite = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    expected = -(0.5**0.5) / 4 - 0.5**0.5
    assert wcord_global_loss(student, opposite).item() == pytest.approx(expected)


def test_transport_by_hand() -> None:
    """Costs 0 of one text and 1 of two: by symmetry the plan is (a, b), (b, a), with a / b =
    e^(1 / ε) and a + b = 1/2, and its cost 2b."""
    rows, epsilon = torch.eye(2, dtype=torch.float64), 0.5
    expected = 1 / (1 + math.exp(1 / epsilon))
    assert transport_loss(rows, rows, epsilon, 50).item() == pytest.approx(expected)
    assert transport_loss(rows, rows.flip(0), epsilon, 50).item() == pytest.approx(expected)


def test_numpy_finds_the_same() -> None:
    s, t = STUDENT.numpy(), TEACHER.numpy()
    cosines, dots = _unit(s) @ _unit(t).T, s @ t.T
    infonce, crd, against = [], [], []
    for i in range(4):
        others = [j for j in range(7) if j != i and not MASKED[i, j]]
        logits = np.exp(cosines[i] / TAU)
        infonce.append(-np.log(logits[i] / logits[[i, *others]].sum()))
        noise = len(others) / 50
        crd.append(-np.log(logits[i] / (logits[i] + noise)))
        crd[-1] -= sum(np.log(1 - logits[j] / (logits[j] + noise)) for j in others)
        against += [dots[i, j] / 2**0.5 for j in others]
    inputs = (STUDENT, TEACHER)
    found = infonce_loss(*inputs, TAU, MASKED).item()
    assert found == pytest.approx(np.mean(infonce), rel=1e-12)
    found = crd_loss(*inputs, TAU, 50, MASKED).item()
    assert found == pytest.approx(np.mean(crd), rel=1e-12)
    expected = np.mean(against) - np.mean([dots[i, i] / 2**0.5 for i in range(4)])
    assert wcord_global_loss(*inputs, MASKED).item() == pytest.approx(expected, rel=1e-12)
    cost = 1 - cosines[:, :4]
    kernel = np.exp(-cost / 0.2)
    v = np.ones(4)
    for _ in range(7):
        u = 0.25 / (kernel @ v)
        v = 0.25 / (kernel.T @ u)
    u = 0.25 / (kernel @ v)
    expected = (u[:, None] * kernel * v * cost).sum()
    found = transport_loss(STUDENT, TEACHER[:4], 0.2, 7).item()
    assert found == pytest.approx(expected, rel=1e-12)


LOSSES: dict[str, Any] = {
    "infonce": lambda s, t, masked=None: infonce_loss(s, t, TAU, masked),
    "crd": lambda s, t, masked=None: crd_loss(s, t, TAU, 50, masked),
    "global": wcord_global_loss,
    "local": lambda s, t, masked=None: transport_loss(s, t[: len(s)], 0.2, 20),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
def test_gradients_and_invariances(name: str) -> None:
    """Order of the batch, order of what was drawn; rotation of both; scale, of all but a critic."""
    loss = LOSSES[name]
    expected = loss(STUDENT, TEACHER)
    order = torch.tensor([2, 0, 3, 1])
    with_drawn = torch.cat([order, torch.tensor([6, 4, 5])])
    turned = torch.linalg.qr(_rows(5, 5, 2))[0]
    torch.testing.assert_close(loss(STUDENT[order], TEACHER[with_drawn]), expected)
    torch.testing.assert_close(loss(STUDENT @ turned, TEACHER @ turned), expected)
    if name != "global":
        torch.testing.assert_close(loss(3 * STUDENT, TEACHER / 2), expected)
    inputs = (STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, MASKED), inputs)


@pytest.mark.parametrize("name", ["infonce", "crd", "global"])
def test_masked_rows_count_for_nothing(name: str) -> None:
    masked = MASKED.clone()
    masked[:, 6] = True
    other = TEACHER.clone()
    other[6] = 5
    expected = LOSSES[name](STUDENT, TEACHER, masked)
    torch.testing.assert_close(LOSSES[name](STUDENT, other, masked), expected)
    assert LOSSES[name](STUDENT, other, MASKED) != expected


@each_loss
def test_too_few_equal_and_zero_rows_have_no_loss_of_nan(name: str) -> None:
    for rows, fill in ((1, 1.0), (1, 0.0), (3, 0.0), (3, 1.0)):
        student = torch.full((rows, 3), fill, requires_grad=True)
        value = LOSSES[name](student, torch.full((rows, 3), fill))
        value.backward()
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_the_student_of_the_teachers_features_is_best() -> None:
    """Among directions, for a batch of texts at right angles."""
    teacher = torch.eye(4, dtype=torch.float64)
    for name in ("infonce", "global"):
        best = LOSSES[name](teacher, teacher)
        for seed in range(20):
            other = F.normalize(teacher + _rows(4, 4, seed), dim=-1)
            assert LOSSES[name](other, teacher) > best


@each_loss
def test_what_bf16_costs(name: str) -> None:
    """Within 1 % of the whole numbers."""
    student, teacher = _rows(32, 64, 0), _rows(96, 64, 1)
    student += teacher[:32]
    rounded = LOSSES[name](student.bfloat16().float(), teacher.float()).item()
    assert rounded == pytest.approx(LOSSES[name](student, teacher).item(), rel=0.01)


def test_labels_mask_others_of_their_class() -> None:
    labels = torch.tensor([0, 1, 0, -100])
    found = same_label(labels, torch.cat([labels, torch.tensor([1, -100])]))
    assert found.int().tolist() == [
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def _tau(objective: Any) -> float:
    return float(objective.options.similarity_temperature)


OF_PAIRS: dict[str, Any] = {
    "infonce": lambda o, s, t, m: infonce_loss(o.projection(s), t, _tau(o), m),
    "crd": lambda o, s, t, m: crd_loss(o.student_map(s), o.teacher_map(t), _tau(o), 50, m),
    "global": lambda o, s, t, m: wcord_global_loss(
        o.student_map(F.normalize(s, dim=1)), o.teacher_map(F.normalize(t, dim=1)), m
    ),
    "in_batch": lambda o, s, t, m: in_batch_loss(s, t, _tau(o), None if m is None else m[:, :5]),
}
"""Terms of objectives, of their own maps and a mask."""


def _made(term: str, **options: Any) -> Any:
    name = {"global": "wcord"}.get(term, term)
    small = {"embedding_size": 4} if name in ("crd", "wcord") else {}
    kind = OBJECTIVES.load(name)
    torch.manual_seed(3)
    objective = kind(kind.Options(**small, **options), Sizes(5, 3, False, (6,))).double().eval()
    objective.examples = 50
    return objective


@pytest.mark.parametrize("term", OF_PAIRS)
@pytest.mark.parametrize("negatives", [0, 2])
def test_a_text_that_comes_again_is_no_negative_of_itself(term: str, negatives: int) -> None:
    """Rows 0 and 3 have one text; row 5 has the same, and no feature."""
    objective = _made(term, **({} if term == "in_batch" else {"negatives": negatives}))
    pooled, teacher = _rows(6, 5, 0), _rows(5 + negatives, 6, 1)
    masked = torch.zeros(5, 5 + negatives, dtype=torch.bool)
    masked[0, 3] = masked[3, 0] = True
    feature = torch.cat([teacher[:5], torch.full((1, 6), math.nan, dtype=torch.float64)])
    sources = {"teacher": feature}
    if negatives and term != "in_batch":
        drawn = Negatives(teacher[5:], torch.zeros(negatives, dtype=torch.int64))
        sources["negatives of teacher"] = drawn
    elif negatives:
        teacher = teacher[:5]
    texts, has = np.array([8, 2, 5, 8, 1, 8]), np.arange(6) < 5
    repeated = StudentSide(pooled, repeats={"teacher": texts}, has_answers={"teacher": has})
    found = objective.of_batch(repeated, sources, None)[term]
    torch.testing.assert_close(found, OF_PAIRS[term](objective, pooled[:5], teacher, masked))
    plain = replace(repeated, repeats={})
    torch.testing.assert_close(
        objective.of_batch(plain, sources, None)[term],
        OF_PAIRS[term](objective, pooled[:5], teacher, None),
    )
    assert found != objective.of_batch(plain, sources, None)[term]


def test_texts_that_come_again_and_labels_mask_together() -> None:
    objective = _made("infonce", mask_same_label=True)
    side = StudentSide(_rows(5, 5, 0), repeats={"teacher": np.array([4, 1, 4, 2, 3])})
    teacher, labels = _rows(5, 6, 1), torch.tensor([0, 1, 2, 1, -100])
    masked = same_label(labels, labels)
    masked[0, 2] = masked[2, 0] = True
    found = objective.of_batch(side, {"teacher": teacher}, labels)["infonce"]
    expected = OF_PAIRS["infonce"](objective, side.pooled_BD, teacher, masked)
    torch.testing.assert_close(found, expected)


def test_the_critic_has_a_lipschitz_constant() -> None:
    """Of at most 1, also after steps that enlarge its weights."""
    kind = OBJECTIVES.load("wcord")
    torch.manual_seed(0)
    objective = kind(kind.Options(embedding_size=8), Sizes(6, 3, False, (5,))).train()
    with torch.no_grad():
        for part in (objective.student_map, objective.teacher_map):
            part.parametrizations.weight.original.mul_(50)
    for _ in range(30):
        for part in (objective.student_map, objective.teacher_map):
            part(torch.zeros(1, part.in_features))
    for part in (objective.student_map, objective.teacher_map):
        assert torch.linalg.matrix_norm(part.weight, 2).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "sizes", [Sizes(6, 1, True, (5,)), Sizes(6, 3, False, (5,), multilabel=True)]
)
def test_a_mask_needs_classes(sizes: Sizes) -> None:
    kind = OBJECTIVES.load("infonce")
    with pytest.raises(JobError, match="mask_same_label"):
        kind(kind.Options(mask_same_label=True), sizes)


def test_sentence_transformers_agrees() -> None:
    """Its loss of ranked answers, whose anchors are the student's texts, and the answers the
    teacher's features, with negatives behind."""
    ranking = pytest.importorskip("sentence_transformers.losses")
    loss = ranking.MultipleNegativesRankingLoss(None, scale=1 / TAU)
    found = loss.compute_loss_from_embeddings([STUDENT, TEACHER[:4]], None)
    assert infonce_loss(STUDENT, TEACHER[:4], TAU).item() == pytest.approx(found.item(), rel=1e-12)


@pytest.mark.slow
def test_other_packages_agree() -> None:
    """POT, of a plan that has converged; torchdistill, whose negatives come from a memory, and
    whose critic divides exp(z) by a constant that it estimates once, which the paper lacks."""
    ot = pytest.importorskip("ot")
    student, teacher = STUDENT, TEACHER[:4]
    cost = 1 - _unit(student.numpy()) @ _unit(teacher.numpy()).T
    even = np.full(4, 0.25)
    plan = ot.sinkhorn(even, even, cost, 0.2, stopThr=1e-14)
    found = transport_loss(student, teacher, 0.2, 500).item()
    assert found == pytest.approx((plan * cost).sum(), rel=1e-9)
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    theirs = losses.CRDLoss("student", "teacher", "index", 5, 50, 6, 50, temperature=TAU, eps=0)
    cosines = torch.tensor(_unit(STUDENT.numpy()) @ _unit(TEACHER.numpy()).T)
    own_first = torch.stack(
        [torch.cat([row[at : at + 1], row[:at], row[at + 1 :]]) for at, row in enumerate(cosines)]
    )
    expected = theirs.compute_contrast_loss((own_first / TAU).exp().unsqueeze(-1)).item()
    assert crd_loss(STUDENT, TEACHER, TAU, 50).item() == pytest.approx(expected, rel=1e-9)
