"""The losses against hand-worked numbers, NumPy, golden numbers of the reference, and gradcheck."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada.cache_schemas.errors import JobError
from armada.stages.distill import closed_forms, losses
from armada.stages.distill import losses as plain
from safetensors import safe_open
from torch import Tensor

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("armada_*.safetensors"))
MANIFOLDS = ["cosine", "euclid", "pointwise"]
DISTANCES = ["mse", "mae", "cosine"]
TASKS = [pytest.param(False, id="classification"), pytest.param(True, id="regression")]
ALIGNER_SIDE = ("aligner_output", "aligner_aux_output", "aligner_projection")
STUDENT_SIDE = ("student_output", "student_aux_output", "student_projection")


@pytest.fixture(autouse=True, params=["plain", "closed forms"])
def formulas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test goes through the plain formulas and through the closed forms."""
    if request.param == "closed forms":
        both = vars(plain) | vars(closed_forms)
        monkeypatch.setitem(globals(), "losses", SimpleNamespace(**both))


def read_golden(path: Path) -> tuple[dict[str, Tensor], dict]:
    with safe_open(path, "pt") as file:
        numbers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    weights = {name: float(metadata[name]) for name in ("alpha", "beta", "gamma")}
    settings = {
        **weights,
        "temperature": float(metadata["T"]),
        "manifold": metadata["loss_type"],
        "regression": metadata["task"] == "sts-b",
    }
    return numbers, settings


def make_inputs(
    regression: bool, rows: int = 5, classes: int = 3, dim: int = 6, dtype=torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    classes = 1 if regression else classes
    shapes = {"output": classes, "aux_output": classes, "projection": dim}
    inputs = {}
    for side in ("student", "aligner"):
        for name, width in shapes.items():
            tensor = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
            inputs[f"{side}_{name}"] = tensor.requires_grad_()
    if regression:
        labels = 5 * torch.rand(rows, generator=generator, dtype=torch.float64)
    else:
        labels = torch.randint(classes, (rows,), generator=generator)
    return {**inputs, "labels": labels}


def armada(inputs: dict[str, Tensor], regression: bool, **changes) -> losses.ArmadaTerms:
    settings = {
        "alpha": 0.3,
        "beta": 0.7,
        "gamma": 0.4,
        "temperature": 2.0,
        "manifold": "cosine",
        "regression": regression,
    }
    return losses.armada_loss(**inputs, **{**settings, **changes})


def drop_labels(labels: Tensor, rows: list[int]) -> Tensor:
    labels = labels.clone()
    labels[rows] = math.nan if labels.is_floating_point() else -100
    return labels


# --- golden numbers of the reference


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_losses(path):
    numbers, settings = read_golden(path)
    sides = {"aligner": "aligner", "student": "student"}
    inputs = {
        f"{side}_{ours}": numbers[f"{theirs}.{name}"]
        for side, theirs in sides.items()
        for ours, name in (("output", "out"), ("aux_output", "aux_out"), ("projection", "proj"))
    }
    terms = losses.armada_loss(**inputs, labels=numbers["label"], **settings)
    for name in ("total", "task", "output", "manifold"):
        torch.testing.assert_close(
            getattr(terms, name), numbers[f"loss.{name}"], rtol=0, atol=1e-9, msg=name
        )
    aligner = losses.aligner_loss(
        inputs["aligner_output"],
        inputs["aligner_aux_output"],
        numbers["label"],
        settings["gamma"],
        settings["regression"],
    )
    torch.testing.assert_close(aligner, numbers["loss.aligner"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_student_gradients(path):
    numbers, settings = read_golden(path)
    names = ("output_head1.classifier", "output_head2.classifier", "projection_head")
    weights = {
        f"{name}.{part}": numbers[f"student.weight.{name}.{part}"].clone().requires_grad_()
        for name in names
        for part in ("weight", "bias")
        if f"student.weight.{name}.{part}" in numbers
    }
    pooled = numbers["pooled"].clone().requires_grad_()
    rectify = F.relu if settings["regression"] else torch.nn.Identity()

    def head(number: int, input: Tensor) -> Tensor:
        name = f"output_head{number}.classifier"
        return rectify(F.linear(input, weights[f"{name}.weight"], weights[f"{name}.bias"]))

    projection = F.linear(pooled, weights["projection_head.weight"])
    terms = losses.armada_loss(
        student_output=head(1, pooled),
        student_aux_output=head(2, projection),
        student_projection=projection,
        aligner_output=numbers["aligner.out"],
        aligner_aux_output=numbers["aligner.aux_out"],
        aligner_projection=numbers["aligner.proj"],
        labels=numbers["label"],
        **settings,
    )
    terms.total.backward()
    torch.testing.assert_close(pooled.grad, numbers["grad.pooled"], rtol=0, atol=1e-9)
    for name, weight in weights.items():
        expected = numbers[f"grad.student.{name}"]
        torch.testing.assert_close(weight.grad, expected, rtol=0, atol=1e-9, msg=name)


# --- numbers worked out by hand


def two_rows(**changes) -> dict[str, Tensor]:
    zeros, ones = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    inputs = {
        "student_output": zeros,
        "student_aux_output": zeros,
        "student_projection": ones,
        "aligner_output": zeros,
        "aligner_aux_output": zeros,
        "aligner_projection": ones,
        "labels": torch.tensor([0, 1]),
    }
    return {**inputs, **changes}


def test_armada_by_hand():
    # softmax((ln 3, 0)·T/T) = (3/4, 1/4) against (1/2, 1/2): squares 1/16, times T² = 4.
    logits = 2 * torch.tensor([[math.log(3), 0], [math.log(3), 0]], dtype=torch.float64)
    # The batch means (1, 0) and (1, 1) stand at 45 degrees.
    points = torch.tensor([[3.0, 0], [-1, 0]], dtype=torch.float64)
    inputs = two_rows(aligner_output=logits, aligner_projection=points)
    terms = armada(inputs, False)
    assert terms.output.item() == pytest.approx(4 / 16)
    assert terms.task.item() == pytest.approx(1.4 * math.log(2))
    assert terms.manifold.item() == pytest.approx(1 - math.sqrt(0.5))
    expected = 0.3 * 0.25 + 0.7 * 1.4 * math.log(2) + 0.7 * (1 - math.sqrt(0.5))
    assert terms.total.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("manifold", "expected"),
    [("euclid", 1 / 2), ("pointwise", (4 + 1 + 4 + 1) / 4)],
)
def test_manifold_by_hand(manifold, expected):
    points = torch.tensor([[3.0, 0], [-1, 0]], dtype=torch.float64)
    terms = armada(two_rows(aligner_projection=points), False, manifold=manifold)
    assert terms.manifold.item() == pytest.approx(expected)


def test_regression_by_hand():
    column = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    inputs = two_rows(
        student_output=column,
        student_aux_output=column,
        aligner_output=column + 3,
        aligner_aux_output=column - 1,
        labels=torch.tensor([1.0, 4.0]),
    )
    terms = armada(inputs, True)
    assert terms.output.item() == pytest.approx(9 + 0.4 * 1)
    assert terms.task.item() == pytest.approx((0 + 4) / 2 * 1.4)


def test_kd_by_hand():
    teacher = 2 * torch.tensor([[math.log(3), 0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    terms = losses.kd_loss(
        student_output=student,
        teacher_logits=teacher,
        labels=torch.tensor([0]),
        alpha=0.25,
        temperature=2.0,
    )
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert terms.distillation.item() == pytest.approx(4 * divergence)
    assert terms.total.item() == pytest.approx(divergence + 0.75 * math.log(2))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("mse", (9 + 16) / 4), ("mae", 7 / 4), ("cosine", (1 - 3 / 5 + 0) / 2)],
)
def test_feature_by_hand(distance, expected):
    terms = losses.feature_loss(
        projection=torch.tensor([[6.0, 0], [1, 1]], dtype=torch.float64),
        feature=torch.tensor([[3.0, 4.0], [1, 1]], dtype=torch.float64),
        output=torch.zeros(2, 4, dtype=torch.float64),
        labels=torch.tensor([0, 3]),
        beta=2.0,
        distance=distance,
        regression=False,
    )
    assert terms.feature.item() == pytest.approx(expected)
    assert terms.total.item() == pytest.approx(math.log(4) + 2 * expected)


def test_aligner_by_hand():
    output, labels = torch.zeros(2, 4), torch.tensor([0, 3])
    assert losses.aligner_loss(output, output, labels, 0.5, False).item() == pytest.approx(
        1.5 * math.log(4)
    )


# --- a second route, in NumPy


def np_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    exponents = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return exponents / exponents.sum(-1, keepdims=True)


def np_task(output: np.ndarray, labels: np.ndarray, regression: bool) -> float:
    rows = ~np.isnan(labels) if regression else labels != -100
    if not rows.any():
        return 0.0
    if regression:
        return np.mean((output[rows, 0] - labels[rows]) ** 2)
    return np.mean(
        [-np.log(p[y]) for p, y in zip(np_softmax(output[rows]), labels[rows], strict=True)]
    )


def np_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def np_armada(inputs: dict[str, Tensor], regression: bool, manifold: str) -> dict[str, float]:
    alpha, beta, gamma, temperature = 0.3, 0.7, 0.4, 2.0
    arrays = {name: tensor.detach().numpy() for name, tensor in inputs.items()}
    t1, t2, tp = (arrays[name] for name in ALIGNER_SIDE)
    s1, s2, sp = (arrays[name] for name in STUDENT_SIDE)
    y = arrays["labels"]
    task = np_task(s1, y, regression) + gamma * np_task(s2, y, regression)
    if regression:
        output = ((t1 - s1) ** 2).mean() + gamma * ((t2 - s2) ** 2).mean()
    else:
        first, second = (
            ((np_softmax(t, temperature) - np_softmax(s, temperature)) ** 2).mean()
            for t, s in ((t1, s1), (t2, s2))
        )
        output = temperature**2 * (first + gamma * second)
    distance = {
        "cosine": lambda: np_cosine(tp.mean(0), sp.mean(0)),
        "euclid": lambda: ((tp.mean(0) - sp.mean(0)) ** 2).mean(),
        "pointwise": lambda: ((tp - sp) ** 2).mean(),
    }[manifold]()
    total = alpha * output + (1 - alpha) * task + beta * distance
    return {"total": total, "task": task, "output": output, "manifold": distance}


@pytest.mark.parametrize("missing", [[], [1, 3], [0, 1, 2, 3, 4]], ids=["none", "some", "all"])
@pytest.mark.parametrize("manifold", MANIFOLDS)
@pytest.mark.parametrize("regression", TASKS)
def test_armada_in_numpy(regression, manifold, missing):
    inputs = make_inputs(regression)
    inputs["labels"] = drop_labels(inputs["labels"], missing)
    terms = armada(inputs, regression, manifold=manifold)
    for name, expected in np_armada(inputs, regression, manifold).items():
        assert getattr(terms, name).item() == pytest.approx(expected, abs=1e-12), name


def test_kd_in_numpy():
    inputs = make_inputs(False)
    student, teacher = inputs["student_output"], inputs["aligner_output"]
    labels = drop_labels(inputs["labels"], [2])
    terms = losses.kd_loss(
        student_output=student,
        teacher_logits=teacher,
        labels=labels,
        alpha=0.3,
        temperature=torch.tensor(3.0, dtype=torch.float64),
    )
    p, q = (np_softmax(tensor.detach().numpy(), 3.0) for tensor in (teacher, student))
    distillation = 9 * (p * np.log(p / q)).sum(-1).mean()
    task = np_task(student.detach().numpy(), labels.numpy(), False)
    assert terms.distillation.item() == pytest.approx(distillation, abs=1e-12)
    assert terms.total.item() == pytest.approx(0.3 * distillation + 0.7 * task, abs=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_feature_in_numpy(distance):
    inputs = make_inputs(True)
    projection, feature = inputs["student_projection"], inputs["aligner_projection"]
    labels = drop_labels(inputs["labels"], [0])
    terms = losses.feature_loss(
        projection=projection,
        feature=feature,
        output=inputs["student_output"],
        labels=labels,
        beta=0.7,
        distance=distance,
        regression=True,
    )
    a, b = projection.detach().numpy(), feature.detach().numpy()
    expected = {
        "mse": ((a - b) ** 2).mean(),
        "mae": np.abs(a - b).mean(),
        "cosine": np.mean([np_cosine(x, y) for x, y in zip(a, b, strict=True)]),
    }[distance]
    task = np_task(inputs["student_output"].detach().numpy(), labels.numpy(), True)
    assert terms.feature.item() == pytest.approx(expected, abs=1e-12)
    assert terms.total.item() == pytest.approx(task + 0.7 * expected, abs=1e-12)


# --- gradients


@pytest.mark.parametrize("manifold", MANIFOLDS)
@pytest.mark.parametrize("regression", TASKS)
def test_armada_gradcheck(regression, manifold):
    inputs = make_inputs(regression, rows=3, dim=4)
    inputs["labels"] = drop_labels(inputs["labels"], [1])
    fixed = {name: tensor for name, tensor in inputs.items() if name not in STUDENT_SIDE}

    def total(*student: Tensor) -> Tensor:
        moving = dict(zip(STUDENT_SIDE, student, strict=True))
        return armada({**moving, **fixed}, regression, manifold=manifold).total

    assert torch.autograd.gradcheck(total, tuple(inputs[name] for name in STUDENT_SIDE))


@pytest.mark.parametrize("regression", TASKS)
def test_aligner_gradcheck(regression):
    inputs = make_inputs(regression, rows=3)
    labels = drop_labels(inputs["labels"], [0])

    def loss(output: Tensor, aux_output: Tensor) -> Tensor:
        return losses.aligner_loss(output, aux_output, labels, 0.4, regression)

    outputs = (inputs["aligner_output"], inputs["aligner_aux_output"])
    assert torch.autograd.gradcheck(loss, outputs)


def test_kd_gradcheck_with_temperature():
    inputs = make_inputs(False, rows=3)

    def total(student: Tensor, temperature: Tensor) -> Tensor:
        return losses.kd_loss(
            student_output=student,
            teacher_logits=inputs["aligner_output"],
            labels=inputs["labels"],
            alpha=0.3,
            temperature=temperature,
        ).total

    temperature = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total, (inputs["student_output"], temperature))


@pytest.mark.parametrize("distance", DISTANCES)
def test_feature_gradcheck(distance):
    inputs = make_inputs(False, rows=3)

    def total(projection: Tensor, output: Tensor) -> Tensor:
        return losses.feature_loss(
            projection=projection,
            feature=inputs["aligner_projection"],
            output=output,
            labels=inputs["labels"],
            beta=0.7,
            distance=distance,
            regression=False,
        ).total

    moving = (inputs["student_projection"], inputs["student_output"])
    assert torch.autograd.gradcheck(total, moving)


@pytest.mark.parametrize("regression", TASKS)
def test_aligner_side_gets_no_gradient(regression):
    inputs = make_inputs(regression)
    armada(inputs, regression).total.backward()
    assert all(inputs[name].grad is None for name in ALIGNER_SIDE)
    assert all(inputs[name].grad is not None for name in STUDENT_SIDE)


def test_teacher_gets_no_gradient():
    inputs = make_inputs(False)
    kd = losses.kd_loss(
        student_output=inputs["student_output"],
        teacher_logits=inputs["aligner_output"],
        labels=inputs["labels"],
        alpha=0.5,
        temperature=5.0,
    )
    feature = losses.feature_loss(
        projection=inputs["student_projection"],
        feature=inputs["aligner_projection"],
        output=None,
        labels=None,
        beta=1.0,
        distance="mse",
        regression=False,
    )
    (kd.total + feature.total).backward()
    assert inputs["aligner_output"].grad is None
    assert inputs["aligner_projection"].grad is None


# --- missing labels


@pytest.mark.parametrize("regression", TASKS)
def test_no_label_at_all(regression):
    inputs = make_inputs(regression)
    labels = drop_labels(inputs["labels"], [0, 1, 2, 3, 4])
    task = losses.task_loss(inputs["student_output"], labels, regression)
    assert task.item() == 0
    task.backward()
    assert inputs["student_output"].grad.abs().sum() == 0
    terms = armada({**inputs, "labels": labels}, regression)
    terms.total.backward()
    assert all(inputs[name].grad.isfinite().all() for name in STUDENT_SIDE)


@pytest.mark.parametrize("regression", TASKS)
def test_missing_labels_mask_the_task_only(regression):
    inputs = make_inputs(regression)
    labels = drop_labels(inputs["labels"], [1, 4])
    kept = [0, 2, 3]
    output = inputs["student_output"]
    task = losses.task_loss(output, labels, regression)
    alone = losses.task_loss(output[kept], labels[kept], regression)
    assert task.item() == pytest.approx(alone.item())
    task.backward()
    assert output.grad[[1, 4]].abs().sum() == 0
    full, partial = armada(inputs, regression), armada({**inputs, "labels": labels}, regression)
    assert torch.equal(full.output, partial.output)
    assert torch.equal(full.manifold, partial.manifold)


def test_no_task_at_all():
    terms = losses.feature_loss(
        projection=torch.ones(2, 3, requires_grad=True),
        feature=torch.zeros(2, 3),
        output=None,
        labels=None,
        beta=2.0,
        distance="mse",
        regression=False,
    )
    assert (terms.task.item(), terms.total.item()) == (0, 2)
    terms.total.backward()


# --- edges


@pytest.mark.parametrize("manifold", MANIFOLDS)
@pytest.mark.parametrize("regression", TASKS)
def test_minimum_at_equality(regression, manifold):
    inputs = make_inputs(regression)
    for teacher, student in zip(ALIGNER_SIDE, STUDENT_SIDE, strict=True):
        inputs[student] = inputs[teacher].detach().clone().requires_grad_()
    terms = armada(inputs, regression, manifold=manifold, alpha=1.0, beta=1.0)
    terms.total.backward()
    assert terms.output.item() == pytest.approx(0, abs=1e-12)
    assert terms.manifold.item() == pytest.approx(0, abs=1e-12)
    for name in STUDENT_SIDE:
        torch.testing.assert_close(inputs[name].grad, torch.zeros_like(inputs[name]))


def test_kd_minimum_at_equality():
    logits = make_inputs(False)["student_output"]
    terms = losses.kd_loss(
        student_output=logits,
        teacher_logits=logits,
        labels=torch.full((5,), -100),
        alpha=1.0,
        temperature=3.0,
    )
    terms.total.backward()
    assert terms.total.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("regression", TASKS)
def test_weights_switch_terms_off(regression):
    inputs = make_inputs(regression)

    def total(**changes) -> float:
        return armada(inputs, regression, **changes).total.item()

    terms = armada(inputs, regression)
    task, output, manifold = (term.item() for term in (terms.task, terms.output, terms.manifold))
    assert total(alpha=0, beta=0) == pytest.approx(task)
    assert total(alpha=1, beta=0) == pytest.approx(output)
    assert total(alpha=0, beta=2) == pytest.approx(task + 2 * manifold)
    alone = losses.task_loss(inputs["student_output"], inputs["labels"], regression)
    assert total(alpha=0, beta=0, gamma=0) == pytest.approx(alone.item())


def test_weights_of_zero_keep_the_graph():
    inputs = make_inputs(False)
    armada(inputs, False, alpha=0, beta=0, gamma=0).total.backward()
    assert inputs["student_projection"].grad.abs().sum() == 0
    assert inputs["student_aux_output"].grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("manifold", MANIFOLDS)
@pytest.mark.parametrize("regression", TASKS)
def test_half_precision_is_accumulated_in_float32(regression, manifold, dtype):
    halves = make_inputs(regression, rows=64, dtype=dtype)
    singles = {
        name: tensor.detach().float() if tensor.dtype == dtype else tensor
        for name, tensor in halves.items()
    }
    half = armada(halves, regression, manifold=manifold)
    single = armada(singles, regression, manifold=manifold)
    for name in ("total", "task", "output", "manifold"):
        assert getattr(half, name).dtype == torch.float32
        assert torch.equal(getattr(half, name), getattr(single, name))
    half.total.backward()
    assert halves["student_output"].grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_extreme_logits_stay_finite(manifold, dtype):
    inputs = make_inputs(False, dtype=dtype)
    signs = torch.tensor([1.0, -1.0, 1.0], dtype=dtype)
    for name, sign in zip(("student_output", "aligner_output"), (1, -1), strict=True):
        inputs[name] = (sign * 1e4 * signs).expand(5, 3).clone().requires_grad_()
    terms = armada(inputs, False, manifold=manifold)
    kd = losses.kd_loss(
        student_output=inputs["student_output"],
        teacher_logits=inputs["aligner_output"],
        labels=inputs["labels"],
        alpha=0.5,
        temperature=1.0,
    )
    (terms.total + kd.total).backward()
    assert terms.total.isfinite()
    assert kd.total.isfinite()
    assert inputs["student_output"].grad.isfinite().all()


@pytest.mark.parametrize("manifold", MANIFOLDS)
@pytest.mark.parametrize("regression", TASKS)
def test_one_row(regression, manifold):
    inputs = make_inputs(regression, rows=1)
    terms = armada(inputs, regression, manifold=manifold)
    expected = np_armada(inputs, regression, manifold)
    assert terms.total.item() == pytest.approx(expected["total"])


def test_zero_projection_is_finite():
    inputs = make_inputs(False)
    inputs["student_projection"] = torch.zeros(5, 6, dtype=torch.float64, requires_grad=True)
    terms = armada(inputs, False)
    terms.total.backward()
    assert terms.manifold.item() == pytest.approx(1)
    assert inputs["student_projection"].grad.isfinite().all()


def test_other_label_dtypes():
    inputs = make_inputs(False)
    narrow = {**inputs, "labels": inputs["labels"].to(torch.int32)}
    assert torch.equal(armada(inputs, False).total, armada(narrow, False).total)
    inputs = make_inputs(True, dtype=torch.float32)
    whole = {**inputs, "labels": inputs["labels"].long()}
    terms = armada(whole, True)
    assert terms.total.dtype == torch.float32
    assert terms.total.isfinite()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"manifold": "sphere"}, "cosine, euclid, pointwise"),
        ({"manifold": "mse"}, "'mse' is unknown"),
    ],
)
def test_unknown_manifold(arguments, message):
    with pytest.raises(JobError, match=message):
        armada(make_inputs(False), False, **arguments)


def test_unknown_distance():
    with pytest.raises(JobError, match=r"distance 'euclid' .* allowed are mse, mae, cosine"):
        losses.feature_loss(
            projection=torch.zeros(1, 2),
            feature=torch.zeros(1, 2),
            output=None,
            labels=None,
            beta=1.0,
            distance="euclid",
            regression=False,
        )


@pytest.mark.parametrize("regression", TASKS)
def test_no_value_is_read_back(regression):
    """On the meta device any `.item()` or `bool(tensor)` raises."""
    inputs = {name: tensor.detach().to("meta") for name, tensor in make_inputs(regression).items()}
    assert armada(inputs, regression).total.shape == ()
    if not regression:
        terms = losses.kd_loss(
            student_output=inputs["student_output"],
            teacher_logits=inputs["aligner_output"],
            labels=inputs["labels"],
            alpha=0.5,
            temperature=torch.tensor(2.0, device="meta"),
        )
        assert terms.total.shape == ()
