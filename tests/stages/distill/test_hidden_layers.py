"""Hidden layers against pooled layers of a teacher: by hand, by NumPy in float64, on students."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.stages.distill.losses.layers import hidden_layers_loss, mixed_layers
from armada.stages.distill.objectives.base import Sizes, StudentSide
from armada.stages.distill.objectives.layers import HiddenLayersObjective
from armada.stages.distill.objectives.options import HiddenLayersOptions
from armada.stages.distill.settings import TrainingSettings
from armada.stages.distill.training import speed_up
from tiny_runs import Bench, train_logged
from torch import Tensor

ROWS, TOKENS, WIDTH = 5, 4, 6
SHAPES = ((3,), (2,))


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_by_hand() -> None:
    """(1, 2) against (1, 0): squares 0 and 4, of mean 2; 3 against 1: 4. Scaled to length 1, the
    second is at its best."""
    projections = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])]
    features = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]])]
    assert hidden_layers_loss(projections, features).item() == pytest.approx(3)
    scaled = ((1 - 5**-0.5) ** 2 + (2 * 5**-0.5) ** 2) / 2 / 2
    assert hidden_layers_loss(projections, features, normalize=True).item() == pytest.approx(scaled)
    pooled = torch.tensor([[[0.0]], [[4.0]]])
    scores = torch.tensor([0.0, float(np.log(3))])
    assert mixed_layers(pooled, scores).item() == pytest.approx(3)


def made(layers: int = 4, shapes: Any = SHAPES, **options: Any) -> HiddenLayersObjective:
    torch.manual_seed(0)
    dims = (WIDTH,) * (layers + 1)
    sizes = Sizes(WIDTH, 3, False, shapes[0], more_shapes=shapes[1:], layer_dims=dims)
    objective = HiddenLayersObjective(HiddenLayersOptions(**options), sizes).double()
    objective.sources = tuple(f"feature {n}" for n in range(len(shapes)))
    return objective


def side(layers: int = 4) -> StudentSide:
    states = {n: draw(n, ROWS, TOKENS, WIDTH) for n in range(layers + 1)}
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 0]])
    return StudentSide(layers=states, mask_BT=mask_BT)


def features(objective: HiddenLayersObjective, shapes: Any = SHAPES) -> dict[str, Tensor]:
    numbered = enumerate(zip(objective.sources, shapes, strict=True))
    return {name: draw(20 + n, ROWS, *shape) for n, (name, shape) in numbered}


@pytest.mark.parametrize("how", ["uniform", "last", "learned", (-1, 1)])
@pytest.mark.parametrize("distance", ["mse", "mae", "cosine", "normalize"])
def test_a_second_computation(how: Any, distance: str) -> None:
    scaled = distance == "normalize"
    objective = made(map=how, distance="mse" if scaled else distance, normalize=scaled)
    if objective.scores is not None:
        torch.nn.init.normal_(objective.scores)
    student, told = side(), features(objective)
    pooled = []
    for layer in range(5):
        states, mask = student.layers[layer].numpy(), student.mask_BT.numpy() == 1
        pooled.append(np.stack([row[m].mean(0) for row, m in zip(states, mask, strict=True)]))
    losses = []
    for number, name in enumerate(objective.sources):
        if how == "learned":
            weights = np.exp(objective.scores[number].detach().numpy())
            mixed = sum(w * p for w, p in zip(weights, pooled[1:], strict=True)) / weights.sum()
        else:
            mixed = pooled[{"uniform": (2, 4), "last": (3, 4)}.get(how, (4, 1))[number]]
        linear = objective.projections[number]
        p = mixed @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
        t = told[name].numpy()
        if scaled:
            p, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (p, t))
        if distance == "mae":
            losses.append(np.abs(p - t).mean())
        elif distance == "cosine":
            cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(p, t)]  # noqa: B905
            losses.append(1 - np.mean(cosines))
        else:
            losses.append(((p - t) ** 2).mean())
    asked = replace(student, layers={n: student.layers[n % 5] for n in objective.layers})
    found = objective.of_sources(asked, told, None)
    assert found["layers"].item() == pytest.approx(np.mean(losses), rel=1e-12)
    assert found["task"] == 0


@pytest.mark.parametrize("normalize", [False, True])
def test_the_optimum_is_at_equality(normalize: bool) -> None:
    features_BH = [draw(1, 5, 3), draw(2, 5, 2)]
    projections = [each.clone().requires_grad_() for each in features_BH]
    loss = hidden_layers_loss(projections, features_BH, normalize=normalize)
    assert loss.item() == pytest.approx(0, abs=1e-30)
    loss.backward()
    for each in projections:
        assert each.grad is not None
        torch.testing.assert_close(each.grad, torch.zeros_like(each))


def test_the_error_of_bf16() -> None:
    """Projections that were rounded to bf16: 0.2 % at most of a loss of distant vectors."""
    projections, told = [draw(1, 256, 64)], [draw(2, 256, 64)]
    for how in ({}, {"normalize": True}, {"distance": "cosine"}):
        exact = hidden_layers_loss(projections, told, **how).item()
        rounded = [each.bfloat16().float() for each in projections]
        found = hidden_layers_loss(rounded, [each.float() for each in told], **how).item()
        assert found == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(
    ("features_read", "layers", "expected"),
    [(1, 4, (4,)), (2, 3, (2, 3)), (3, 6, (2, 4, 6)), (4, 4, (1, 2, 3, 4))],
)
def test_uniform_maps_end_at_the_last_layer(
    features_read: int, layers: int, expected: tuple[int, ...]
) -> None:
    assert made(layers, ((2,),) * features_read).layers == expected


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (1, {}, "map=uniform: 2 features for a student of 1 layers"),
        (1, {"map": "last"}, "name fewer features, or use map=learned"),
        (4, {"map": (1,)}, "map: names 1 layers of the student for 2 features of the teacher"),
        (4, {"map": (1, 5)}, "layer 5 is beyond the student's"),
    ],
)
def test_maps_that_do_not_fit_are_refused(layers: int, options: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        made(layers, **options)


def test_layers_of_several_widths_have_no_mean() -> None:
    sizes = Sizes(4, 3, False, (3,), layer_dims=(4, 4, 6))
    with pytest.raises(JobError, match="map=learned: the student's layers have 2 widths"):
        HiddenLayersObjective(HiddenLayersOptions(map="learned"), sizes)


@pytest.mark.parametrize("how", [{}, {"lora_rank": 2}])
def test_checkpointing_keeps_the_losses(bench: Bench, tmp_path: Any, how: dict[str, Any]) -> None:
    found = []
    for checkpointed in (False, True):
        run = bench.run(
            tmp_path / str(checkpointed),
            objective="hidden_layers",
            features=("embedding", "logits"),
            **{"dropout": 0.0, "epochs": 1, "validate": False, **how},
        )
        for module in run.model.student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        settings = TrainingSettings(gradient_checkpointing=checkpointed)
        speed_up(run.model.student, settings, run.device)
        found.append(train_logged(run)[1])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][-1] < found[0][0]
