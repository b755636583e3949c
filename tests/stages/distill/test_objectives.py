"""The objectives: golden numbers through the modules, gradients, schedules, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from armada.cache_schemas.errors import JobError, MissingFeatureError
from armada.stages.distill import closed_forms, losses
from armada.stages.distill.aligner import ClassificationHead
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.armada import ArmadaObjective
from armada.stages.distill.objectives.base import Objective, Sizes
from armada.stages.distill.objectives.logits import KDObjective, LearnedTemperature
from armada.stages.distill.objectives.options import ArmadaOptions
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("armada_*.safetensors"))
NAMES = ["armada", "kd", "feature", "undistilled"]
ALIGNER_NAMES = {
    "hidden1": "h1",
    "hidden2": "h2",
    "head.linear": "output_head1.classifier",
    "aux_head.linear": "output_head2.classifier",
}


def read_golden(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, file.metadata()


def fill(module: torch.nn.Module, numbers: dict[str, Tensor], prefix: str) -> None:
    with torch.no_grad():
        for part in ("weight", "bias"):
            if f"{prefix}.{part}" in numbers:
                getattr(module, part).copy_(numbers[f"{prefix}.{part}"])


def golden_case(path: Path) -> tuple[ArmadaObjective, ClassificationHead, dict[str, Tensor]]:
    numbers, metadata = read_golden(path)
    options = ArmadaOptions(
        alpha=float(metadata["alpha"]),
        beta=float(metadata["beta"]),
        gamma=float(metadata["gamma"]),
        temperature=float(metadata["T"]),
        manifold=metadata["loss_type"],
        aligner_hidden_size=int(metadata["d_model"]),
    )
    sizes = make_sizes(
        pooled_dim=int(metadata["hidden"]),
        num_labels=int(metadata["labels"]),
        regression=metadata["task"] == "sts-b",
        feature_shape=(int(metadata["latent"]),),
        dropout=0.0,
    )
    objective = ArmadaObjective(options, sizes).double()
    for ours, theirs in ALIGNER_NAMES.items():
        fill(objective.aligner.get_submodule(ours), numbers, f"aligner.weight.{theirs}")
    objective.aligner.projection.weight = numbers["aligner.weight.projection_head.weight"]
    fill(objective.projection, numbers, "student.weight.projection_head")
    fill(objective.aux_head.linear, numbers, "student.weight.output_head2.classifier")
    head = ClassificationHead(sizes.pooled_dim, sizes.num_labels, sizes.regression, dropout=0.0)
    head = head.double()
    fill(head.linear, numbers, "student.weight.output_head1.classifier")
    return objective, head, numbers


def make_sizes(**changes) -> Sizes:
    sizes = {"pooled_dim": 6, "num_labels": 3, "regression": False, "feature_shape": (8,)}
    return Sizes(**{**sizes, **changes})


def make(name: str, sizes: Sizes | None = None, dropout: float = 0.1, **options) -> Objective:
    torch.manual_seed(0)
    if sizes is None:
        sizes = make_sizes(feature_shape=(3,)) if name == "kd" else make_sizes()
    chosen = OBJECTIVES.load(name)
    return chosen(chosen.Options(**options), replace(sizes, dropout=dropout))


def make_batch(sizes: Sizes, rows: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    feature = None
    if sizes.feature_shape is not None:
        feature = torch.randn(rows, *sizes.feature_shape, generator=generator)
    output = torch.randn(rows, sizes.num_labels, generator=generator)
    labels = torch.randint(sizes.num_labels, (rows,), generator=generator)
    return {
        "pooled_BD": torch.randn(rows, sizes.pooled_dim, generator=generator).requires_grad_(),
        "output_BK": (output.relu() if sizes.regression else output).requires_grad_(),
        "feature_BH": feature,
        "labels_B": labels.float() if sizes.regression else labels,
    }


# --- golden numbers of the reference


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_student(path):
    objective, head, numbers = golden_case(path)
    pooled = numbers["pooled"].clone().requires_grad_()
    terms = objective(pooled, head(pooled), numbers["feature"], numbers["label"])
    terms["total"].backward()
    for name in ("total", "task", "output", "manifold"):
        torch.testing.assert_close(
            terms[name], numbers[f"loss.{name}"], rtol=0, atol=1e-9, msg=name
        )
    gradients = {
        "pooled": pooled.grad,
        "student.projection_head.weight": objective.projection.weight.grad,
        "student.output_head1.classifier.weight": head.linear.weight.grad,
        "student.output_head1.classifier.bias": head.linear.bias.grad,
        "student.output_head2.classifier.weight": objective.aux_head.linear.weight.grad,
        "student.output_head2.classifier.bias": objective.aux_head.linear.bias.grad,
    }
    for name, gradient in gradients.items():
        expected = numbers[f"grad.{name}"]
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9, msg=name)
    assert all(parameter.grad is None for parameter in objective.aligner.parameters())


@pytest.mark.parametrize("joint", [False, True], ids=["alternating", "joint"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_aligner(path, joint):
    objective, head, numbers = golden_case(path)
    objective.joint = joint
    pooled = numbers["pooled"]
    if joint:
        terms = objective(pooled, head(pooled), numbers["feature"], numbers["label"])
        loss, aligner = terms["total"], terms["aligner"]
        expected = numbers["loss.total"] + numbers["loss.aligner"]
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)
    else:
        loss = aligner = objective.aligner_loss(numbers["feature"], numbers["label"])
    torch.testing.assert_close(aligner, numbers["loss.aligner"], rtol=0, atol=1e-9)
    loss.backward()
    for ours, theirs in ALIGNER_NAMES.items():
        for part in ("weight", "bias"):
            gradient = objective.aligner.get_parameter(f"{ours}.{part}").grad
            expected = numbers[f"grad.aligner.{theirs}.{part}"]
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9, msg=ours)


# --- what every objective promises


@pytest.mark.parametrize("name", NAMES)
def test_total_is_the_only_term_with_a_graph(name):
    objective = make(name)
    batch = make_batch(objective.sizes)
    terms = objective(**batch)
    assert all(term.shape == () for term in terms.values())
    assert [key for key, term in terms.items() if term.requires_grad] == ["total"]
    terms["total"].backward()
    assert batch["output_BK"].grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_attributes(name):
    objective = make(name)
    assert objective.reads.features == (name != "undistilled")
    assert objective.reads.default_feature == ("logits" if name == "kd" else None)
    assert objective.sources == (() if name == "undistilled" else ("teacher",))
    assert (objective.aligner is None) == (name != "armada")


@pytest.mark.parametrize("name", ["armada", "kd", "feature"])
def test_missing_feature(name):
    objective = make(name)
    batch = {**make_batch(objective.sizes), "feature_BH": None}
    with pytest.raises(MissingFeatureError, match="the batch carries none"):
        objective(**batch)
    with pytest.raises(MissingFeatureError, match="none is named"):
        make(name, make_sizes(feature_shape=None))


@pytest.mark.parametrize("name", ["armada", "feature", "undistilled"])
@pytest.mark.parametrize("regression", [False, True], ids=["classification", "regression"])
def test_no_label_at_all(name, regression):
    sizes = make_sizes(num_labels=1 if regression else 3, regression=regression)
    objective, batch = make(name, sizes), make_batch(sizes)
    batch["labels_B"] = torch.full((5,), torch.nan if regression else -100)
    if not regression:
        batch["labels_B"] = batch["labels_B"].long()
    terms = objective(**batch)
    assert terms["task"] == 0
    assert terms["total"].isfinite()
    terms["total"].backward()


@pytest.mark.parametrize("name", ["armada", "feature"])
def test_features_of_any_shape_and_dtype(name):
    sizes = make_sizes(feature_shape=(2, 3, 4))
    assert sizes.feature_dim == 24
    objective, batch = make(name, sizes).eval(), make_batch(sizes)
    half = batch["feature_BH"].half()
    flat = objective(**{**batch, "feature_BH": half.float().flatten(1)})
    assert torch.equal(objective(**{**batch, "feature_BH": half})["total"], flat["total"])


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    objective = make(name)
    batch = make_batch(objective.sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = objective(**batch)
    assert all(term.dtype == torch.float32 for term in terms.values())
    terms["total"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trips(name):
    first, second = make(name).eval(), make(name)
    second.load_state_dict(first.state_dict())
    batch = make_batch(first.sizes)
    assert torch.equal(first(**batch)["total"], second.eval()(**batch)["total"])


# --- armada


def test_reading_the_aligner_keeps_its_mode_and_drops_nothing():
    objective = make("armada", dropout=0.5)
    feature = make_batch(objective.sizes)["feature_BH"]
    assert objective.aligner.training
    first, second = objective.read(feature), objective.read(feature)
    assert objective.aligner.training
    assert all(module.training for module in objective.aligner.modules())
    assert all(
        torch.equal(a, b) and not a.requires_grad for a, b in zip(first, second, strict=True)
    )
    objective.aligner.eval()
    objective.read(feature)
    assert not objective.aligner.training


def test_aligner_loss_uses_dropout_in_training_only():
    objective = make("armada", dropout=0.5)
    batch = make_batch(objective.sizes)
    arguments = batch["feature_BH"], batch["labels_B"]
    assert objective.aligner_loss(*arguments) != objective.aligner_loss(*arguments)
    objective.eval()
    assert objective.aligner_loss(*arguments) == objective.aligner_loss(*arguments)


def test_joint_gradients_do_not_mix():
    objective = make("armada", dropout=0.0)
    batch = make_batch(objective.sizes)
    objective(**batch)["total"].backward()
    alone = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    assert all(not name.startswith("aligner.") for name in alone)
    objective.zero_grad()
    objective.joint = True
    terms = objective(**batch)
    assert set(terms) == {"total", "task", "output", "manifold", "aligner"}
    terms["total"].backward()
    together = {name: p.grad for name, p in objective.named_parameters()}
    assert all(gradient is not None for gradient in together.values())
    assert all(torch.equal(together[name], gradient) for name, gradient in alone.items())


def test_aligner_learns_from_features_alone():
    objective = make("armada", aligner_hidden_size=16, dropout=0.0)
    batch = make_batch(objective.sizes)
    optimizer = torch.optim.AdamW(objective.aligner.parameters(), lr=1e-2)
    before = objective(**batch)["output"].item()
    first = objective.aligner_loss(batch["feature_BH"], batch["labels_B"]).item()
    for _ in range(30):
        optimizer.zero_grad()
        objective.aligner_loss(batch["feature_BH"], batch["labels_B"]).backward()
        optimizer.step()
    last = objective.aligner_loss(batch["feature_BH"], batch["labels_B"]).item()
    assert last < 0.8 * first
    assert objective(**batch)["output"].item() != before


def test_orthogonal_student_projection():
    objective = make("armada", orthogonal_projection=True)
    weight_HD = objective.projection.weight
    torch.testing.assert_close(weight_HD.T @ weight_HD, torch.eye(6), rtol=0, atol=1e-5)


def test_hidden_size_and_map_reach_the_aligner():
    objective = make("armada", aligner_hidden_size=5, orthogonal_map="cayley")
    assert objective.aligner.hidden2.weight.shape == (5, 5)
    map_in_use = objective.aligner.projection.parametrizations.weight[0].orthogonal_map
    assert map_in_use.name == "cayley"


# --- kd


def test_kd_calls_its_loss():
    objective = make("kd", alpha=0.3, temperature=3)
    batch = make_batch(objective.sizes)
    terms = objective(**batch)
    expected = closed_forms.kd_loss(
        student_output=batch["output_BK"],
        teacher_logits=batch["feature_BH"],
        labels=batch["labels_B"],
        alpha=0.3,
        temperature=3.0,
    )
    assert set(terms) == {"total", "task", "distillation"}
    assert torch.equal(terms["total"], expected.total)
    assert list(objective.parameters()) == []


def test_learned_temperature_climbs_where_the_student_descends():
    objective = make("kd", temperature="learned", alpha=1.0)
    assert isinstance(objective, KDObjective)
    batch = make_batch(objective.sizes)
    terms = objective(**batch)
    assert terms["temperature"].item() == pytest.approx(1 + 20 / (1 + 2.718281828**-1))
    terms["total"].backward()
    theta = objective.learned_temperature.theta
    free = theta.detach().clone().requires_grad_()
    losses.kd_loss(
        student_output=batch["output_BK"].detach(),
        teacher_logits=batch["feature_BH"],
        labels=batch["labels_B"],
        alpha=1.0,
        temperature=1 + 20 * torch.sigmoid(free),
    ).total.backward()
    torch.testing.assert_close(theta.grad, -free.grad)
    assert free.grad != 0


@pytest.mark.parametrize("reversed_gradient", [True, False], ids=["reversed", "descending"])
def test_descending_along_the_temperature_collapses_it(reversed_gradient):
    temperature = LearnedTemperature()
    temperature.reversal = 1.0 if reversed_gradient else -1.0
    optimizer = torch.optim.Adam(temperature.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    teacher, student = 4 * torch.randn(2, 64, 3, generator=generator)
    for _ in range(200):
        optimizer.zero_grad()
        losses.kd_loss(
            student_output=student,
            teacher_logits=teacher,
            labels=torch.full((64,), -100),
            alpha=1.0,
            temperature=temperature(),
        ).total.backward()
        optimizer.step()
    assert (temperature() > 20) if reversed_gradient else (temperature() < 2)


@pytest.mark.parametrize("theta", [-1e4, 1e4])
def test_learned_temperature_is_bounded(theta):
    temperature = LearnedTemperature()
    torch.nn.init.constant_(temperature.theta, theta)
    assert 1 <= temperature().item() <= 21


def test_reversal_of_zero_freezes_the_temperature():
    temperature = LearnedTemperature()
    temperature.reversal = 0.0
    temperature().backward()
    assert temperature.theta.grad == 0


# --- feature


def test_feature_without_a_task():
    objective = make("feature", beta=2.0)
    batch = make_batch(objective.sizes)
    terms = objective(batch["pooled_BD"], None, batch["feature_BH"], None)
    assert terms["task"] == 0
    torch.testing.assert_close(terms["total"].detach(), 2 * terms["feature"])
    terms["total"].backward()
    assert objective.projection.bias.grad is not None


def test_feature_reaches_its_target():
    objective = make("feature", beta=1.0)
    batch = make_batch(objective.sizes)
    feature = objective.projection(batch["pooled_BD"]).detach()
    terms = objective(**{**batch, "feature_BH": feature})
    assert terms["feature"] == 0
    task = F.cross_entropy(batch["output_BK"], batch["labels_B"])
    torch.testing.assert_close(terms["total"], task)


# --- refusals


@pytest.mark.parametrize(
    ("name", "sizes", "settings", "message"),
    [
        ("kd", {"feature_shape": (4,)}, {}, "logits have 4 classes, the task 3"),
        (
            "kd",
            {"num_labels": 1, "regression": True, "feature_shape": (3,)},
            {},
            "feature has 3 numbers, the task 1 outputs",
        ),
        (
            "kd",
            {"num_labels": 1, "regression": True, "feature_shape": (1,)},
            {"temperature": 2.0},
            r"temperature 2\.0: the task is a regression, whose numbers have none; leave it out",
        ),
    ],
    ids=["kd classes", "kd numbers", "kd temperature"],
)
def test_refused(name, sizes, settings, message):
    with pytest.raises(JobError, match=message):
        make(name, make_sizes(**sizes), **settings)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("armada", {"alpha": 1.5}),
        ("kd", {"alpha": -0.1}),
        ("armada", {"beta": -1}),
        ("feature", {"beta": float("inf")}),
        ("armada", {"gamma": -0.1}),
        ("armada", {"temperature": 0}),
        ("armada", {"temperature": "learned"}),
        ("kd", {"temperature": "warm"}),
        ("kd", {"temperature": float("nan")}),
        ("armada", {"manifold": "sphere"}),
        ("feature", {"distance": "euclid"}),
        ("armada", {"aligner_hidden_size": 0}),
        ("armada", {"distance": "mse"}),
        ("kd", {"beta": 1.0}),
        ("undistilled", {"alpha": 0.5}),
    ],
    ids=str,
)
def test_options_refused(name, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        OBJECTIVES.load(name).Options(**wrong)


@pytest.mark.parametrize("name", OBJECTIVES.built_in)
def test_every_option_has_a_description(name):
    options = OBJECTIVES.load(name).Options.model_fields
    assert all(field.description for field in options.values())
