"""Several objectives at once: their weighted sum, by a second route, and runs that are cut."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.distill.losses import feature_loss, task_loss
from armada.stages.distill.model import DistillModel
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Objective, Sizes, StudentSide
from armada.stages.distill.objectives.options import WeightSchedule
from armada.stages.distill.objectives.sum import SummedObjective
from armada.stages.distill.training import Run, train
from pydantic import ValidationError
from tiny_runs import Bench, changed, freeze_dropout, make_cache, train_logged, weights

SIZES = Sizes(6, 3, False, None, dropout=0.0)
SHAPES = {"pictures": (4,), "words": (5,), "classes": (3,)}


def part(name: str, source: str | None, **options: Any) -> Objective:
    """An objective that reads a source."""
    chosen = OBJECTIVES.load(name)
    shape = SHAPES[source] if source else None
    built: Objective = chosen(chosen.Options(**options), replace(SIZES, feature_shape=shape))
    built.label = f"{name}-{source}" if source else name
    built.sources = (source,) if source else ()
    return built


def batch(rows: int = 5) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any], torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    sources = {n: torch.randn(rows, *s, generator=draw) for n, s in SHAPES.items()}
    pooled = torch.randn(rows, 6, generator=draw).requires_grad_()
    output = torch.randn(rows, 3, generator=draw).requires_grad_()
    return pooled, output, sources, torch.arange(rows) % 3


def test_a_sum_is_its_parts_each_with_its_own_source() -> None:
    torch.manual_seed(0)
    parts = [part("armada", "pictures"), part("kd", "classes"), part("feature", "words")]
    whole = SummedObjective(parts, [1.0, 0.25, 2.0], SIZES).eval()
    pooled, output, sources, labels = batch()
    terms = whole.of_sources(StudentSide(pooled, output), sources, labels)
    one = parts[0](pooled, output, sources["pictures"], labels)
    two = parts[1](pooled, output, sources["classes"], labels)
    # The labels are scored by others: what is left of this one is its feature.
    plain = feature_loss(
        projection=parts[2].projection(pooled),  # type: ignore[operator]
        feature=sources["words"],
        output=None,
        labels=None,
        beta=1.0,
        distance="mse",
        regression=False,
    )
    expected = one["total"] + 0.25 * two["total"] + 2 * plain.total
    torch.testing.assert_close(terms["total"], expected)
    assert terms["armada-pictures.manifold"] == one["manifold"]
    assert terms["kd-classes.distillation"] == two["distillation"]
    torch.testing.assert_close(terms["feature-words.feature"], plain.feature.detach())
    assert "task" not in terms
    named = {name for name in terms if name != "total"}
    assert all(not terms[name].requires_grad for name in named)


def test_the_task_is_added_once_where_nobody_scores_it() -> None:
    torch.manual_seed(0)
    parts = [part("feature", "words"), part("feature", "pictures", distance="cosine")]
    whole = SummedObjective(parts, [0.5, 3.0], SIZES)
    pooled, output, sources, labels = batch()
    terms = whole.of_sources(StudentSide(pooled, output), sources, labels)
    task = task_loss(output, labels, regression=False)
    torch.testing.assert_close(terms["task"], task.detach())
    words, pictures = terms["feature-words.feature"], terms["feature-pictures.feature"]
    torch.testing.assert_close(terms["total"].detach(), task.detach() + 0.5 * words + 3 * pictures)
    without = whole.of_sources(StudentSide(pooled), sources, None)
    torch.testing.assert_close(without["total"].detach(), 0.5 * words + 3 * pictures)
    assert "task" not in without


def test_a_sum_passes_gradients_of_float64() -> None:
    torch.manual_seed(0)
    parts = [part("armada", "pictures"), part("feature", "words")]
    whole = SummedObjective(parts, [0.7, WeightSchedule(begin=2, end=0)], SIZES).double()
    whole.progress = 0.25
    _, _, sources, labels = batch()
    doubles = {name: each.double() for name, each in sources.items()}

    def total(pooled: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return whole.of_sources(StudentSide(pooled, output), doubles, labels)["total"]

    pooled, output, *_ = batch()
    inputs = [each.detach().double().requires_grad_() for each in (pooled, output)]
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ({"from": 1, "to": 0}, {0: 1, 0.25: 0.75, 1: 0}),
        ({"from": 0, "to": 3, "until": 0.5}, {0: 0, 0.25: 1.5, 0.5: 3, 0.9: 3}),
        (
            {"from": 2, "to": 1, "shape": "cosine"},
            {0: 2, 0.25: 1 + (1 + math.cos(math.pi / 4)) / 2, 0.5: 1.5, 1: 1},
        ),
        ({"from": 1, "to": 0, "after": 0.2, "until": 0.6}, {0.1: 1, 0.2: 1, 0.4: 0.5, 0.6: 0}),
        ({"from": 8, "to": 2, "shape": "exponential"}, {0: 8, 0.5: 4, 1: 2}),
        ({"from": 3, "to": 5, "until": 0.5, "shape": "step"}, {0: 3, 0.49: 3, 0.5: 5, 1: 5}),
    ],
    ids=["linear", "until", "cosine", "after", "exponential", "step"],
)
def test_weights_that_move(schedule: dict[str, Any], points: dict[float, float]) -> None:
    made = WeightSchedule(**schedule)
    for progress, weight in points.items():
        assert made.at(progress) == pytest.approx(weight)
    assert WeightSchedule(**made.model_dump()) == made


@pytest.mark.parametrize(
    "wrong",
    [
        {"from": 1},
        {"from": -1, "to": 0},
        {"from": 1, "to": float("inf")},
        {"from": 1, "to": 0, "until": 0},
        {"from": 1, "to": 0, "until": 1.5},
        {"from": 1, "to": 0, "shape": "staircase"},
        {"from": 1, "to": 0, "after": 0.5, "until": 0.5},
        {"from": 1, "to": 0, "shape": "exponential"},
        {"from": 1, "to": 0, "after": 0.1, "shape": "step"},
        {"from": 1, "to": 0, "at": 3},
    ],
    ids=str,
)
def test_schedules_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WeightSchedule(**wrong)


def test_an_evaluation_weighs_as_the_end_does() -> None:
    whole = SummedObjective(
        [part("feature", "words")], [WeightSchedule(begin=1, end=3)], SIZES
    ).eval()
    pooled, _, sources, _ = batch()
    terms = whole.of_sources(StudentSide(pooled), sources, None)
    torch.testing.assert_close(terms["total"].detach(), 3 * terms["feature-words.feature"])


# --- runs


@pytest.fixture(scope="module")
def bench(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    import shutil

    folder = tmp_path_factory.mktemp("sums")
    shutil.copytree(checkpoint("bert"), folder / "student")
    return Bench(freeze_dropout(folder / "student"), make_cache(folder / "cache"))


FALLING = WeightSchedule(begin=2, end=0, until=0.8)


def summed(bench: Bench, folder: Path, as_drawn: list[str] | None = None, **more: Any) -> Run:
    """ARMADA from embeddings and from logits, and the embedding itself, shuffled."""
    return replace(bench.summed(folder, weight=FALLING, **more), as_drawn=as_drawn or [])


@pytest.mark.parametrize("placement", ["mapped", "resident", "streamed"])
def test_a_cut_run_with_several_sources_ends_as_one_that_was_not(
    bench: Bench, tmp_path: Path, placement: str
) -> None:
    """Two aligners with optimizers of their own, a weight that moves, a control on one source."""
    how = {"placement": placement, "save_steps": 5}
    whole = summed(bench, tmp_path / "whole", **how)
    rows: list[dict[str, float]] = []
    train(replace(whole, on_log=rows.append))

    class Cut(Exception):
        pass

    steps: list[int] = []

    def stop(_: int) -> None:
        steps.append(1)
        if len(steps) == 12:
            raise Cut

    first = summed(bench, tmp_path / "cut", **how)
    with pytest.raises(Cut):
        train(replace(first, on_step=stop))
    again = summed(bench, tmp_path / "cut", **how)
    rest: list[dict[str, float]] = []
    train(replace(again, on_log=rest.append))
    later = [row for row in rows if row["step"] > 10 and "loss" in row]
    resumed = [row for row in rest if "loss" in row]
    names = {"loss", "armada-one.aligner", "armada-two.aligner", "armada-one.manifold"}
    names |= {"feature-three.feature", "feature-three.weight"}
    assert names <= later[0].keys()
    for one, other in zip(later, resumed, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"epoch", "learning_rate"}:
            assert one[name] == other[name], (name, one["step"])
    for name, weight in weights(whole).items():
        assert torch.equal(weights(again)[name], weight), name


def test_weights_move_with_the_steps(bench: Bench, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    train(replace(summed(bench, tmp_path, validate=False), on_log=rows.append))
    found = [row["feature-three.weight"] for row in rows if "loss" in row]
    steps = np.arange(21) / 21
    assert found == pytest.approx(np.maximum(2 - 2 * steps / 0.8, 0).tolist(), abs=1e-6)


def test_one_aligner_stays_as_it_was_drawn_and_the_other_learns(
    bench: Bench, tmp_path: Path
) -> None:
    run = summed(bench, tmp_path, as_drawn=["one"])
    before = weights(run)
    train_logged(run)
    names = {name.split(".")[2] for name in changed(run, before) if ".aligner." in name}
    assert names == {"1"}


def test_one_objective_in_a_sum_is_that_objective(bench: Bench, tmp_path: Path) -> None:
    """Bit for bit, all losses and weights."""
    plain = bench.run(tmp_path / "plain", objective="armada")
    sum_run = bench.run(tmp_path / "sum", objective="armada")
    objective = sum_run.model.objective
    sum_of_one = SummedObjective([objective], [1.0], objective.sizes)
    sum_run = replace(sum_run, model=DistillModel(sum_run.model.student, sum_of_one))
    assert train_logged(plain)[1] == train_logged(sum_run)[1]
    found = {name.replace("each.0.", ""): weight for name, weight in weights(sum_run).items()}
    for name, weight in weights(plain).items():
        assert torch.equal(found[name], weight), name
