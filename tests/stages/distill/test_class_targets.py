"""Losses of a batch's logits and of targets made from a teacher's, against NumPy and by hand."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from armada.stages.distill.losses.batch_logits import lumi_loss, sinkhorn_loss
from armada.stages.distill.losses.divergences import forward_kl_loss
from armada.stages.distill.losses.logits import binary_kl_loss
from armada.stages.distill.losses.targets import (
    first_loss,
    fused_labels_losses,
    smoothed_labels_loss,
    taid_loss,
)
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import (
    FusedLabelsOptions,
    PESFOptions,
    SinkhornOptions,
    TAIDOptions,
)
from armada.stages.distill.objectives.targets import (
    AdaptiveShare,
    FusedLabelsObjective,
    PESFObjective,
    TAIDObjective,
)
from pydantic import ValidationError
from torch import Tensor

Array = npt.NDArray[np.float64]


def _logits(rows: int, classes: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, classes, dtype=torch.float64, generator=draw)


def _soft(logits_BK: Array, temperature: float = 2.0) -> Array:
    powers = np.exp(logits_BK / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def _kl(p: Array, q: Array) -> Array:
    return (p * np.log(p / q)).sum(axis=1)


# --- Of all rows of a batch


@pytest.mark.parametrize("classes", [2, 5, 300])
def test_sinkhorn_again(classes: int) -> None:
    """By quotients instead of logarithms."""
    student, teacher = _logits(6, classes, 0), _logits(6, classes, 1)
    q, p = _soft(student.numpy()), _soft(teacher.numpy())
    cost = np.array([[np.abs(q[i] - p[j]).sum() for j in range(6)] for i in range(6)])
    plan = np.exp(-cost / 0.2)
    for _ in range(20):
        plan = plan / plan.sum(axis=1, keepdims=True)
        plan = plan / plan.sum(axis=0, keepdims=True)
    expected = (plan * cost).sum() / 6
    assert sinkhorn_loss(student, teacher, 2.0, 0.2, 20).item() == pytest.approx(expected, rel=1e-9)


def test_sinkhorn_by_hand() -> None:
    """Two rows that are swapped: one is moved onto the other for nothing, whatever their order;
    a single row has to be moved, from (1/2, 1/2) to (3/4, 1/4)."""
    rows = torch.tensor([[20.0, 0.0], [0.0, 20.0]])
    assert sinkhorn_loss(rows.flip(0), rows, 1.0, 0.01, 50).item() == pytest.approx(0, abs=1e-6)
    teacher = torch.tensor([[3.0, 1.0]]).log()
    assert sinkhorn_loss(torch.zeros(1, 2), teacher, 1.0, 0.1, 3).item() == pytest.approx(0.5)


def test_sinkhorn_is_least_near_equality() -> None:
    teacher = _logits(6, 4, 1)
    best = sinkhorn_loss(teacher, teacher, 1.0, 0.01, 50)
    assert 0 <= best < 1e-3
    for seed in range(2, 6):
        assert sinkhorn_loss(teacher + 0.3 * _logits(6, 4, seed), teacher, 1.0, 0.01, 50) > best


@pytest.mark.parametrize("rows", [2, 6])
def test_lumi_again(rows: int) -> None:
    student, teacher = _logits(rows, 5, 0), _logits(rows, 5, 1)
    perceived = [
        (each - each.mean(axis=0)) / np.sqrt(each.var(axis=0) + 1e-5)
        for each in (student.numpy(), teacher.numpy())
    ]
    expected = 4 * _kl(_soft(perceived[1]), _soft(perceived[0])).mean()
    assert lumi_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-9)


def test_lumi_by_hand() -> None:
    """One class moves from -1 to 1, so that it is -1 and 1 in units of its deviation, the other
    stays where it is; the student has the classes the other way round."""
    student = torch.tensor([[5.0, -1.0], [5.0, 1.0]], dtype=torch.float64)
    loss = lumi_loss(student, student.flip(1), 1.0).item()
    p, q = _soft(np.array([[-1.0, 0.0], [1.0, 0.0]]), 1), _soft(np.array([[0.0, -1], [0, 1]]), 1)
    assert loss == pytest.approx(_kl(p, q).mean(), rel=1e-4)


def test_lumi_does_not_see_where_classes_lie() -> None:
    student, teacher = _logits(6, 4, 0), _logits(6, 4, 1)
    moved = 3 * student + torch.arange(4.0)
    torch.testing.assert_close(
        lumi_loss(moved, teacher, 2.0), lumi_loss(student, teacher, 2.0), rtol=1e-4, atol=0
    )
    assert lumi_loss(3 * teacher + 1, teacher, 2.0).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["kl_weight", "sinkhorn_weight"])
def test_weights_of_sinkhorn_must_weigh_something(name: str) -> None:
    assert SinkhornOptions(**{name: 0})
    with pytest.raises(ValidationError, match="nothing is left of the teacher"):
        SinkhornOptions(kl_weight=0, sinkhorn_weight=0)


# --- On the way to the teacher


def test_taid_again() -> None:
    student, teacher = _logits(5, 4, 0), _logits(5, 4, 1)
    between = 0.7 * student.numpy() + 0.3 * teacher.numpy()
    expected = 4 * _kl(_soft(between), _soft(student.numpy())).mean()
    assert taid_loss(student, teacher, 2.0, 0.3).item() == pytest.approx(expected, rel=1e-9)
    assert taid_loss(student, teacher, 2.0, 0.0) == 0
    whole = forward_kl_loss(student, teacher, 2.0)
    torch.testing.assert_close(taid_loss(student, teacher, 2.0, 1.0), whole)


def test_the_gradient_of_taid_does_not_see_its_target() -> None:
    student, teacher = _logits(3, 4, 0).requires_grad_(), _logits(3, 4, 1)
    taid_loss(student, teacher, 2.0, 0.3).backward()
    between = 0.7 * student.detach() + 0.3 * teacher
    soft = [(each / 2).softmax(-1) for each in (student.detach(), between)]
    torch.testing.assert_close(student.grad, 2 / 3 * (soft[0] - soft[1]))


def test_the_share_by_hand() -> None:
    """Losses 1, then 1/2 of two batches, with momentum 1/2 and a step of 0.4: the first step is the
    start, the second on the line; before the third, m = 1/2 · 1/2."""
    share = AdaptiveShare(TAIDOptions(taid_start=0.5, taid_step=0.4, taid_momentum=0.5))
    seen = []
    for progress, losses in ((0.0, [1.0]), (0.01, [0.25, 0.75]), (0.02, [0.5])):
        for loss in losses:
            seen.append(share.at(progress).item())
            share.observe(torch.tensor(loss))
    ahead = 0.505 + 0.4 / (1 + np.exp(-0.25)) * (1 - 0.505)
    assert seen == pytest.approx([0.5, 0.505, 0.505, ahead])
    share.at(0.999)
    assert share.at(1.0).item() == 1


def test_the_share_is_on_the_line_without_a_step_and_never_beyond_the_end() -> None:
    share = AdaptiveShare(TAIDOptions(taid_start=0.2, taid_end=0.6, taid_step=0))
    for progress in (0.0, 0.25, 0.5, 1.0):
        assert share.at(progress).item() == pytest.approx(0.2 + 0.4 * progress)
        share.observe(torch.tensor(1.0))
    fast = AdaptiveShare(TAIDOptions(taid_start=0.2, taid_end=0.6, taid_step=1))
    for step in range(20):
        assert fast.at(step / 1000) <= 0.6
        fast.observe(torch.tensor(0.9**step))
    assert fast.at(0.5).item() == pytest.approx(0.6)


def test_the_share_goes_on_from_its_buffers() -> None:
    """As a run that was cut does, between any two steps."""
    options = TAIDOptions(taid_step=0.3)
    whole = AdaptiveShare(options)
    seen = []
    for step in range(6):
        fresh = AdaptiveShare(options)
        fresh.load_state_dict(whole.state_dict())
        seen.append((whole.at(step / 6), fresh.at(step / 6)))
        whole.observe(torch.tensor(1 / (1 + step)))
    for one, other in seen:
        assert torch.equal(one, other)


def test_training_moves_the_share_and_evaluation_does_not() -> None:
    objective = TAIDObjective(TAIDOptions(taid_step=0.5), Sizes(4, 3, False, (3,)))
    student, teacher = _logits(5, 3, 0).float(), _logits(5, 3, 1).float()
    inputs = (torch.zeros(5, 4), student, teacher, torch.zeros(5))
    assert objective(*inputs)["share"].item() == pytest.approx(0.4)
    before = objective.state_dict()["share.now"].clone()
    objective.eval()
    assert objective(*inputs)["share"] == 1
    assert torch.equal(objective.state_dict()["share.now"], before)
    with pytest.raises(ValidationError, match="lower taid_start"):
        TAIDOptions(taid_start=0.9, taid_end=0.5)


# --- Recalibrated, smoothed, standardised, fused


def test_first_by_hand() -> None:
    """Teacher 4 : 2 : 1 : 1, two kept: (2/3, 1/3), of which 1/6 is moved: (1/2, 1/2); the student
    has 1/4 each."""
    teacher = torch.tensor([[1.0, 4.0, 1.0, 2.0]]).log()
    student = torch.zeros(1, 4)
    kept = 2 / 3 * np.log(8 / 3) + 1 / 3 * np.log(4 / 3)
    assert first_loss(student, teacher, 2, 1.0, 0.0).item() == pytest.approx(kept)
    assert first_loss(student, teacher, 2, 1.0, 1 / 6).item() == pytest.approx(np.log(2))
    assert first_loss(student, teacher, 1, 1.0, 0.5).item() == pytest.approx(np.log(4))
    # Half the logarithms: 2 : √2 : 1 : 1.
    p = np.array([[2, 2**0.5]]) / (2 + 2**0.5)
    halved = first_loss(student, teacher, 2, 2.0, 0.0).item()
    assert halved == pytest.approx(_kl(p, np.full((1, 2), 0.25))[0])


def test_first_of_all_classes_is_kl() -> None:
    student, teacher = _logits(5, 4, 0), _logits(5, 4, 1)
    whole = forward_kl_loss(student, teacher, 1.0)
    torch.testing.assert_close(first_loss(student, teacher, 9, 1.0, 0.0), whole)
    torch.testing.assert_close(smoothed_labels_loss(student, teacher, 1.0), whole)
    moved = first_loss(student, teacher, 4, 1e-3, 0.9999)
    assert moved.isfinite()


def test_smoothed_labels_are_one_cross_entropy() -> None:
    """alpha · KL + (1 - alpha) · CE has the gradient of the cross entropy with their mixture."""
    student, teacher = _logits(5, 4, 0).requires_grad_(), _logits(5, 4, 1)
    labels = torch.tensor([0, 1, 2, 3, 0])
    target = 0.3 * (teacher / 2).softmax(-1) + 0.7 * torch.nn.functional.one_hot(labels)
    mixed = torch.nn.functional.cross_entropy(student, target)
    parts = 0.3 * smoothed_labels_loss(student, teacher, 2.0)
    parts = parts + 0.7 * torch.nn.functional.cross_entropy(student, labels)
    one, other = (torch.autograd.grad(each, student)[0] for each in (mixed, parts))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("classes", [2, 5, 300])
def test_binary_kl_again(classes: int) -> None:
    student, teacher = _logits(5, classes, 0), _logits(5, classes, 1)
    s, t = (
        (each - each.mean(axis=1, keepdims=True)) / each.std(axis=1, ddof=1, keepdims=True)
        for each in (student.numpy(), teacher.numpy())
    )
    p, q = (1 / (1 + np.exp(-each / 2)) for each in (t, s))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    expected = 4 * each.sum(axis=1).mean()
    assert binary_kl_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-9)
    scaled = binary_kl_loss(3 * teacher + 1, teacher, 2.0)
    assert scaled.item() == pytest.approx(0, abs=1e-12)  # a sum of up to 300 roundings


def _fused(alpha: float, labels: Tensor) -> tuple[FusedLabelsObjective, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    options = FusedLabelsOptions(alpha=alpha, temperature=2.0, strictness=2.0)
    objective = FusedLabelsObjective(options, Sizes(4, 3, False, (3,))).double()
    return objective, (torch.zeros(4, 4), _logits(4, 3, 0), _logits(4, 3, 1), labels)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_fused_labels_begin_at_alpha(alpha: float) -> None:
    objective, inputs = _fused(alpha, torch.tensor([0, 1, 2, -100]))
    distilled, labelled = fused_labels_losses(inputs[1], inputs[2], inputs[3], 2.0)
    share = min(max(alpha, 1e-3), 1 - 1e-3)
    each = share * distilled[:3] + (1 - share) * labelled[:3]
    terms = objective(*inputs)
    torch.testing.assert_close(terms["total"], (each.sum() + distilled[3]) / 4)
    assert terms["gate"].item() == pytest.approx((3 * share + 1) / 4)


def test_fused_labels_of_a_high_temperature() -> None:
    """A divergence of nearly equal distributions is rounded to less than 0, here times 1e8."""
    torch.manual_seed(0)
    objective = FusedLabelsObjective(FusedLabelsOptions(temperature=1e4), Sizes(4, 3, False, (3,)))
    student, teacher = torch.randn(64, 3), torch.randn(64, 3)
    distilled, _ = fused_labels_losses(student, teacher, torch.zeros(64), 1e4)
    assert distilled.min() < -1
    terms = objective(torch.zeros(64, 4), student, teacher, torch.zeros(64, dtype=torch.long))
    assert torch.isfinite(terms["total"])


def test_the_gate_learns_the_odds_that_it_should() -> None:
    objective, inputs = _fused(0.3, torch.tensor([0, 1, 2, 0]))
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.03)
    for _ in range(600):
        optimizer.zero_grad()
        objective(*inputs)["total"].backward()
        optimizer.step()
    distilled, labelled = fused_labels_losses(inputs[1], inputs[2], inputs[3], 2.0)
    best = torch.sigmoid(np.log(0.3 / 0.7) + (labelled - distilled) / 2)
    assert objective(*inputs)["gate"].item() == pytest.approx(best.mean().item(), abs=1e-3)


def test_the_adapter_begins_as_nothing_and_is_held_to_labels() -> None:
    torch.manual_seed(0)
    objective = PESFObjective(PESFOptions(alpha=1.0), Sizes(4, 3, False, (3,))).double()
    labels = torch.tensor([0, 1, 2, -100])
    inputs = (torch.zeros(4, 4), _logits(4, 3, 0), _logits(4, 3, 1), labels)
    terms = objective(*inputs)
    torch.testing.assert_close(terms["kl"], forward_kl_loss(inputs[1], inputs[2], 5.0))
    entropy = torch.nn.functional.cross_entropy(inputs[2][:3], labels[:3])
    torch.testing.assert_close(terms["adapter"], entropy)
    torch.testing.assert_close(terms["total"].detach(), terms["kl"] + entropy)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: sinkhorn_loss(s, t, 2.0, 0.1, 20),
        lambda s, t: lumi_loss(s, t, 2.0),
        lambda s, t: taid_loss(s, t, 2.0, 0.5),
        lambda s, t: first_loss(s, t, 5, 1.5, 0.1),
        lambda s, t: smoothed_labels_loss(s, t, 2.0),
        lambda s, t: binary_kl_loss(s, t, 2.0),
    ],
    ids=["sinkhorn", "lumi", "taid", "first", "smoothed_labels", "binary_kl"],
)
class TestAll:
    @pytest.mark.parametrize("classes", [1, 2, 1000])
    @pytest.mark.parametrize("rows", [1, 4])
    @pytest.mark.parametrize("size", [0.0, 1e-6, 6e4])
    def test_extremes(self, loss, rows, classes, size) -> None:
        student = (size * _logits(rows, classes, 0).sign()).float().requires_grad_()
        value = loss(student, (size * _logits(rows, classes, 1).sign()).float())
        value.backward()
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()

    def test_error_of_bfloat16(self, loss) -> None:
        """Logits rounded to 8 bits: the loss of eight rows is off by less than 1 part in 50."""
        student, teacher = _logits(8, 10, 0), _logits(8, 10, 1)
        rounded = loss(*(each.bfloat16().float() for each in (student, teacher)))
        assert rounded.item() == pytest.approx(loss(student, teacher).item(), rel=0.02)
