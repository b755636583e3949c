"""The TS aligner and the heads: golden outputs and gradients, start values, the orthogonal map."""

import copy
from pathlib import Path

import pytest
import torch
from armada.stages.distill.aligner import ClassificationHead, ProjectionHead, TSAligner
from armada.stages.distill.losses import aligner_loss
from armada.stages.distill.optimizers import adamw, parameter_groups
from safetensors import safe_open
from torch import Tensor

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("armada_*.safetensors"))
REFERENCE_NAMES = {
    "hidden1.weight": "h1.weight",
    "hidden1.bias": "h1.bias",
    "hidden2.weight": "h2.weight",
    "hidden2.bias": "h2.bias",
    "head.linear.weight": "output_head1.classifier.weight",
    "head.linear.bias": "output_head1.classifier.bias",
    "aux_head.linear.weight": "output_head2.classifier.weight",
    "aux_head.linear.bias": "output_head2.classifier.bias",
}
MAPS = ["matrix_exp", "cayley"]


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(request.param, "pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata()


def golden_aligner(numbers: dict[str, Tensor], metadata: dict[str, str]) -> TSAligner:
    sizes = [int(metadata[name]) for name in ("latent", "d_model", "labels")]
    aligner = TSAligner(*sizes, regression=metadata["task"] == "sts-b").double().eval()
    with torch.no_grad():
        for ours, theirs in REFERENCE_NAMES.items():
            aligner.get_parameter(ours).copy_(numbers[f"aligner.weight.{theirs}"])
    aligner.projection.weight = numbers["aligner.weight.projection_head.weight"]
    return aligner


def assert_orthogonal(weight: Tensor, atol: float = 1e-5) -> None:
    small = weight if weight.shape[0] <= weight.shape[1] else weight.T
    torch.testing.assert_close(
        small @ small.T, torch.eye(len(small), dtype=weight.dtype), rtol=0, atol=atol
    )


def test_golden_outputs(golden):
    numbers, metadata = golden
    answers = golden_aligner(numbers, metadata)(numbers["feature"])
    for answer, name in zip(answers, ("out", "aux_out", "proj"), strict=True):
        expected = numbers[f"aligner.{name}"]
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-9, msg=name)


def test_golden_loss_and_gradients(golden):
    numbers, metadata = golden
    aligner = golden_aligner(numbers, metadata)
    output, aux_output, _ = aligner(numbers["feature"])
    gamma, regression = float(metadata["gamma"]), metadata["task"] == "sts-b"
    loss = aligner_loss(output, aux_output, numbers["label"], gamma, regression)
    loss.backward()
    torch.testing.assert_close(loss, numbers["loss.aligner"], rtol=0, atol=1e-9)
    for ours, theirs in REFERENCE_NAMES.items():
        expected = numbers[f"grad.aligner.{theirs}"]
        gradient = aligner.get_parameter(ours).grad
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9, msg=ours)


def test_golden_projection_round_trips(golden):
    numbers, metadata = golden
    expected = numbers["aligner.weight.projection_head.weight"]
    aligner = golden_aligner(numbers, metadata)
    torch.testing.assert_close(aligner.projection.weight, expected, rtol=0, atol=1e-12)
    other = TSAligner(64, 32, int(metadata["labels"])).double()
    other.load_state_dict(aligner.state_dict())
    torch.testing.assert_close(other.projection.weight, expected, rtol=0, atol=1e-12)


def test_shapes_and_names():
    aligner = TSAligner(feature_dim=12, hidden_dim=7, num_labels=3)
    output, aux_output, projection = aligner(torch.randn(5, 12))
    assert output.shape == aux_output.shape == (5, 3)
    assert projection.shape == (5, 12)
    names = {name for name, _ in aligner.named_parameters()}
    assert names == {*REFERENCE_NAMES, "projection.parametrizations.weight.original"}


def test_start_values():
    torch.manual_seed(0)
    aligner = TSAligner(feature_dim=200, hidden_dim=300, num_labels=50)
    for linear in (aligner.hidden1, aligner.hidden2, aligner.head.linear, aligner.aux_head.linear):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert linear.weight.mean().item() == pytest.approx(0, abs=1e-3)
        assert linear.bias.abs().sum() == 0
    assert_orthogonal(aligner.projection.weight)
    assert aligner.projection.bias is None
    free = ProjectionHead(300, 200)
    assert free.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert free.bias is None


def test_regression_outputs_are_not_negative():
    torch.manual_seed(0)
    output, aux_output, projection = TSAligner(8, 4, 1, regression=True)(torch.randn(50, 8))
    assert output.shape == (50, 1)
    assert min(output.min(), aux_output.min()) >= 0
    assert projection.min() < 0


def test_dropout_in_training_only():
    torch.manual_seed(0)
    head = ClassificationHead(100, 4, dropout=0.5)
    input = torch.randn(3, 100)
    assert not torch.equal(head(input), head(input))
    head.eval()
    assert torch.equal(head(input), head(input))
    silent = TSAligner(8, 4, 2, dropout=0.0)
    feature = torch.randn(3, 8)
    assert torch.equal(silent(feature)[1], silent(feature)[1])


@pytest.mark.parametrize("orthogonal_map", MAPS)
@pytest.mark.parametrize("sizes", [(10, 10), (10, 16), (16, 10)], ids=str)
def test_orthogonal_after_steps_with_weight_decay(sizes, orthogonal_map):
    torch.manual_seed(0)
    head = ProjectionHead(*sizes, orthogonal=True, orthogonal_map=orthogonal_map)
    start = head.weight.detach().clone()
    assert_orthogonal(start)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (head(torch.ones(2, sizes[0])) - 1).square().sum().backward()
        optimizer.step()
    assert_orthogonal(head.weight)
    assert (head.weight - start).abs().max() > 0.01


def step(head: ProjectionHead) -> ProjectionHead:
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1)
    (head(torch.ones(2, 6)) - 1).square().sum().backward()
    optimizer.step()
    return head


def step_behind_its_back(head: ProjectionHead) -> ProjectionHead:
    with torch.no_grad():
        head.parametrizations.weight.original.add_(torch.randn(6, 6))
    return head


def assign(head: ProjectionHead) -> ProjectionHead:
    head.weight = torch.linalg.qr(torch.randn(6, 6)).Q
    return head


def load(head: ProjectionHead) -> ProjectionHead:
    head.load_state_dict(ProjectionHead(6, 6, orthogonal=True).state_dict())
    return head


def copy_and_step(head: ProjectionHead) -> ProjectionHead:
    return step_behind_its_back(copy.deepcopy(head))


CHANGES = [step, step_behind_its_back, assign, load, copy_and_step, ProjectionHead.double]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_kept_weight_follows_every_change(change):
    torch.manual_seed(0)
    head = ProjectionHead(6, 6, orthogonal=True)
    input = torch.randn(3, 6)
    head.requires_grad_(False)
    assert torch.equal(head(input), head(input))
    head = change(head.requires_grad_(True)).requires_grad_(False)
    torch.testing.assert_close(head(input), input.to(head.weight.dtype) @ head.weight.T)


def test_fused_step_changes_the_kept_weight():
    head = ProjectionHead(6, 6, orthogonal=True)
    with torch.no_grad():
        head.requires_grad_(False)(torch.ones(2, 6))
    head.requires_grad_(True)
    optimizer = adamw(parameter_groups(head.parameters(), 0.1, 0.0))
    head(torch.ones(2, 6))[:, 0].sum().backward()
    optimizer.step()
    head.requires_grad_(False)
    torch.testing.assert_close(head(torch.ones(2, 6)), torch.ones(2, 6) @ head.weight.T)


def count_matrices(monkeypatch) -> list[int]:
    calls: list[int] = []
    real = torch.matrix_exp
    monkeypatch.setattr(torch, "matrix_exp", lambda a: calls.append(1) or real(a))
    return calls


def test_frozen_weight_is_worked_out_once(monkeypatch):
    head = ProjectionHead(6, 6, orthogonal=True).requires_grad_(False)
    calls = count_matrices(monkeypatch)
    for _ in range(3):
        head(torch.randn(2, 6))
    assert len(calls) == 1


def test_training_works_out_no_matrix(monkeypatch):
    head = ProjectionHead(6, 6, orthogonal=True)
    calls = count_matrices(monkeypatch)
    head(torch.randn(2, 6)).sum().backward()
    with torch.no_grad():
        head(torch.randn(2, 6))
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_reads_features_of_any_dtype(dtype):
    aligner = TSAligner(8, 4, 2).eval()
    feature = torch.randn(3, 8).to(dtype)
    for answer, expected in zip(aligner(feature), aligner(feature.float()), strict=True):
        assert torch.equal(answer, expected)


def test_autocast_keeps_the_map_orthogonal():
    aligner = TSAligner(16, 4, 2).eval().requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output, _, projection = aligner(torch.randn(3, 16))
    assert output.dtype == projection.dtype == torch.bfloat16
    assert aligner.projection._kept[1].dtype == torch.float32
    assert_orthogonal(aligner.projection._kept[1])
