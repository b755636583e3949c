"""SGD and its form with two momenta: by hand, in runs, with each objective; and refusals."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import TASK_PART, Sizes, StudentSide
from armada.stages.distill.optimizers import DOT
from armada.stages.distill.settings import TrainingSettings
from armada.stages.distill.training import Run
from cuts import assert_same_weights, go, spoil_generators
from pydantic import ValidationError
from tiny_runs import Bench, changed, train_logged, weights

DOT_KEYS = {"optimizer": "dot", "learning_rate": 0.01}


def test_three_steps_by_hand() -> None:
    """Losses a · w and b · w, whose gradients are a and b; the sum is clipped to length 1."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.01}]
    optimizer = DOT(groups, momentum=0.8, delta=0.1, max_grad_norm=1.0)
    w, task, distillation = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for a, b in (([1.0, 2.0], [2.0, 2.0]), ([0.1, 0.0], [0.2, 0.3]), ([0.0, 0.0], [3.0, 0.0])):
        of_task = (torch.tensor(a) * weight).sum()
        optimizer.zero_grad()
        optimizer.add_task(of_task)
        (of_task + (torch.tensor(b) * weight).sum()).backward()
        optimizer.step()
        length = np.linalg.norm(np.add(a, b))
        factor = min(1, 1 / (length + 1e-6))
        task = 0.7 * task + factor * np.array(a) + 0.01 * w
        distillation = 0.9 * distillation + factor * np.array(b)
        w = w - 0.1 * (task + distillation)
        np.testing.assert_allclose(weight.detach()[0], w, rtol=1e-6)


def test_without_a_difference_it_is_sgd(bench: Bench, tmp_path: Path) -> None:
    def losses(name: str, **settings: Any) -> list[float]:
        return train_logged(bench.run(tmp_path / name, objective="kd", **settings))[1]

    sgd = losses("sgd", optimizer="sgd", learning_rate=0.05)
    same = losses("dot", optimizer="dot", learning_rate=0.05, momentum_delta=0)
    other = losses("two", optimizer="dot", learning_rate=0.05, momentum_delta=0.09)
    assert same == pytest.approx(sgd, rel=1e-4)
    assert other[0] == sgd[0]
    assert other[-1] != pytest.approx(sgd[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("kd", {"alpha": 0.3}, 0.7),
        ("feature", {"beta": 2.0}, 1.0),
        ("rkd", {"beta": 2.0}, 1.0),
        ("undistilled", {}, 1.0),
        ("armada", {"alpha": 0.25, "gamma": 0.0, "beta": 3.0}, 0.75),
    ],
)
def test_the_parts_of_a_loss(name: str, options: dict[str, Any], share: float) -> None:
    """What is left of the loss without the task's part does not depend on the labels."""
    torch.manual_seed(0)
    chosen = OBJECTIVES.load(name)
    shape = None if name == "undistilled" else (3,)
    objective = chosen(chosen.Options(**options), Sizes(5, 3, False, shape, dropout=0.0)).double()
    objective.splits = True
    side = StudentSide(torch.randn(6, 5).double(), torch.randn(6, 3).double())
    sources = {"teacher": torch.randn(6, 3).double()} if shape else {}
    left = []
    for labels in (torch.tensor([0, 1, 2, 0, 1, -100]), torch.tensor([2, 2, 2, 1, -100, -100])):
        terms = objective.of_batch(side, sources, labels)
        task = F.cross_entropy(side.output_BK, labels)
        torch.testing.assert_close(terms[TASK_PART], share * task)
        left.append(terms["total"] - terms[TASK_PART])
    torch.testing.assert_close(left[0], left[1])
    if name == "undistilled":
        assert left[0] == 0


def test_the_parts_of_a_sum_and_of_rows_without_a_teacher(bench: Bench, tmp_path: Path) -> None:
    """Weights of the parts, and rows that the labels alone teach."""
    run = bench.summed(tmp_path, weight=2.0)
    objective = run.model.objective.double()
    for part in (objective, *objective.parts):
        part.splits = True
    torch.manual_seed(1)
    side = StudentSide(
        torch.randn(6, run.model.student.dim).double(),
        torch.randn(6, 3).double(),
        has_answers={"one": np.array([True, False, True, False, True, True])},
    )
    sources = {"one": torch.randn(6, 6).double(), "two": torch.randn(6, 3).double()}
    sources["three"] = sources["one"]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    part = objective.of_batch(side, sources, labels)[TASK_PART]
    rows = torch.tensor([0, 2, 4, 5]), torch.tensor([1, 3])
    with_it, without = (F.cross_entropy(side.output_BK[each], labels[each]) for each in rows)
    first = 4 / 6 * 0.5 * with_it + 2 / 6 * without
    second = 0.5 * 0.5 * F.cross_entropy(side.output_BK, labels)
    torch.testing.assert_close(part, first + second)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"objective": "kd"}, id="kd"),
        pytest.param({"gradient_accumulation": 2, "schedule": "joint"}, id="armada"),
        pytest.param({"objective": "feature", "lora_rank": 2, "precision": "bf16"}, id="adapters"),
    ],
)
def test_a_run_that_was_cut(bench: Bench, tmp_path: Path, settings: dict[str, Any]) -> None:
    def make(name: str) -> Run:
        return bench.run(tmp_path / name, save_steps=3, **DOT_KEYS, **copy.deepcopy(settings))

    whole = make("whole")
    before = weights(whole)
    expected = go(whole)
    losses = go(make("cut"), 8)
    spoil_generators()
    resumed = make("cut")
    assert {**losses, **go(resumed)} == expected
    assert_same_weights(resumed, whole)
    trains = {name for name, p in whole.model.named_parameters() if p.requires_grad}
    assert changed(whole, before) >= {name for name in trains if "lora" in name or "head" in name}


def test_checkpointed_activations_are_computed_twice(bench: Bench, tmp_path: Path) -> None:
    from armada.stages.distill.training import speed_up

    runs = [bench.run(tmp_path / n, objective="kd", dropout=0.0, **DOT_KEYS) for n in "ab"]
    checkpointed = TrainingSettings(gradient_checkpointing=True)
    speed_up(runs[1].model.student, checkpointed, torch.device("cpu"))
    one, other = (train_logged(run)[1] for run in runs)
    assert other == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 0.9}, "momentum 0.9: AdamW has none; set optimizer=sgd or optimizer=dot"),
        ({"optimizer": "sgd", "momentum_delta": 0.1}, "momentum_delta 0.1: is of optimizer=dot"),
        ({"momentum_delta": 0.1}, "momentum_delta 0.1: is of optimizer=dot"),
        (
            {"optimizer": "dot", "momentum": 0.9, "momentum_delta": 0.2},
            "momentum_delta 0.2: momentum 0.9 .* choose at most 0.1",
        ),
        ({"optimizer": "dot", "momentum": 0.05}, "choose at most 0.05"),
        ({"optimizer": "dot", "compile_student": True}, "does not go with compile_student"),
        ({"optimizer": "dot", "shard_student": True}, "does not go with shard_student"),
        ({"optimizer": "dot", "auto_batch_size": True}, "does not go with auto_batch_size"),
        ({"optimizer": "dot", "precision": "fp16"}, "does not go with precision=fp16"),
        ({"optimizer": "adam"}, "Input should be 'sgd' or 'dot'"),
        ({"optimizer": "sgd", "momentum": 1}, "less than 1"),
        ({"optimizer": "sgd", "momentum": float("nan")}, "momentum"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSettings(**settings)
