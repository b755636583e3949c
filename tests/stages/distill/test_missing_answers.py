"""Training rows that are not in a teacher's cache: the other losses alone, and never a feature
that is none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada.stages.distill.controls import Gather, among_others, controlled, parse_control
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes, StudentSide
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.objectives.sum import SummedObjective
from tiny_runs import TEXTS, Bench, train_logged

ROWS, DIM, CLASSES = 7, 5, 3
HAS = np.array([1, 0, 1, 1, 0, 0, 1], dtype=bool)
SIZES = Sizes(DIM, CLASSES, False, (CLASSES,), dropout=0.0)


def made(name: str, **options: Any) -> Any:
    chosen = OBJECTIVES.load(name)
    torch.manual_seed(1)
    return chosen(chosen.Options(**options), SIZES).double()


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pooled texts, outputs, a teacher's logits with NaN where it was not asked, labels."""
    random = np.random.default_rng(seed)
    pooled = torch.from_numpy(random.normal(size=(ROWS, DIM))).requires_grad_()
    output = torch.from_numpy(random.normal(size=(ROWS, CLASSES))).requires_grad_()
    feature = torch.from_numpy(np.where(HAS[:, None], random.normal(size=(ROWS, CLASSES)), np.nan))
    return pooled, output, feature, torch.from_numpy(random.integers(0, CLASSES, ROWS))


def test_each_row_counts_once_with_the_loss_that_it_has() -> None:
    pooled, output, feature, labels = batch()
    side = StudentSide(pooled, output, has_answers={SOURCE: HAS})
    terms = made("kd", alpha=0.3, temperature=2.0).of_batch(side, {SOURCE: feature}, labels)
    # By hand, row by row, from the formula of the objective.
    task = F.cross_entropy(output, labels, reduction="none")
    soft = F.log_softmax(feature / 2, 1)
    kl = 4 * (soft.exp() * (soft - F.log_softmax(output / 2, 1))).sum(1)
    of_rows = torch.where(torch.from_numpy(HAS), 0.3 * kl + 0.7 * task, task)
    torch.testing.assert_close(terms["total"], of_rows.mean())
    torch.testing.assert_close(terms["task"], task.mean())
    torch.testing.assert_close(terms["distillation"], kl[HAS].mean())
    (gradient,) = torch.autograd.grad(terms["total"], output)
    (alone,) = torch.autograd.grad(task.mean(), output)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient[~HAS], alone[~HAS])


@pytest.mark.parametrize("name", ["kd", "feature", "armada"])
@pytest.mark.parametrize("count", [ROWS, 0])
def test_all_rows_or_none(name: str, count: int) -> None:
    pooled, output, feature, labels = batch()
    feature = feature.nan_to_num()
    objective = made(name)
    has = np.arange(ROWS) < count
    side = StudentSide(pooled, output, has_answers={SOURCE: has})
    terms = objective.of_batch(side, {SOURCE: feature}, labels)
    task = F.cross_entropy(output, labels)
    if count:
        expected = objective.of_sources(side, {SOURCE: feature}, labels)
        assert {name: value.item() for name, value in terms.items()} == {
            name: value.item() for name, value in expected.items()
        }
    else:
        assert terms.keys() == {"total", "task"}
        torch.testing.assert_close(terms["total"], task)


def test_parts_of_a_sum_have_rows_of_their_own() -> None:
    pooled, output, feature, labels = batch()
    parts = [made("kd"), made("feature")]
    for part, source in zip(parts, ("a", "b"), strict=True):
        part.label, part.sources = part.__class__.__name__, (source,)
    other = torch.from_numpy(np.where(HAS[:, None], np.nan, feature.nan_to_num().numpy() + 1))
    objective = SummedObjective(parts, [1.0, 2.0], SIZES)
    side = StudentSide(pooled, output, has_answers={"a": HAS, "b": ~HAS})
    terms = objective.of_batch(side, {"a": feature, "b": other}, labels)

    def of(part: Any, rows: Any, values: torch.Tensor, with_task: bool) -> torch.Tensor:
        given = (
            (output[rows], values[rows], labels[rows]) if with_task else (None, values[rows], None)
        )
        return part(pooled[rows], *given)["total"]

    share = HAS.mean()
    kd = share * of(parts[0], HAS, feature, True)
    kd = kd + (1 - share) * F.cross_entropy(output[~HAS], labels[~HAS])
    torch.testing.assert_close(
        terms["total"], kd + 2 * (1 - share) * of(parts[1], ~HAS, other, False)
    )
    nobody = replace(side, has_answers={"a": HAS & False, "b": HAS & False})
    loss = objective.of_batch(nobody, {"a": feature, "b": other}, labels)["total"]
    torch.testing.assert_close(loss, F.cross_entropy(output, labels))
    loss.backward()


def test_a_row_without_an_answer_has_no_numbers(bench: Bench) -> None:
    rows = bench.cache.lookup(TEXTS).copy()
    rows[::3] = -1
    answered = np.flatnonzero(rows >= 0)
    plain = controlled(bench.cache["embedding"], rows, parse_control("none"), 0)
    found = plain(np.arange(len(rows)))
    assert np.isnan(found[::3]).all()
    np.testing.assert_array_equal(found[answered], bench.cache["embedding"].gather(rows[answered]))
    plain.will_need(np.arange(len(rows)))
    # Shuffled: the answers of other rows that have one, each once.
    moved: Gather = controlled(bench.cache["embedding"], rows, parse_control("shuffled"), 0)
    np.testing.assert_array_equal(moved.rows < 0, rows < 0)
    assert (moved.rows[answered] != rows[answered]).all()
    assert sorted(moved.rows[answered]) == sorted(rows[answered])
    noisy = controlled(bench.cache["embedding"], rows, parse_control("noise=1"), 0)
    assert np.isfinite(noisy(answered)).all()
    # In an order of files they lie among the others, not in blocks of their own.
    assert np.bincount(among_others(rows), minlength=rows.max() + 1)[rows[answered]].max() <= 2


@pytest.mark.parametrize("objective", ["armada", "kd", "feature"])
@pytest.mark.parametrize("how", [{}, {"schedule": "joint"}, {"placement": "streamed"}])
def test_a_run_learns_from_what_there_is(
    bench: Bench, tmp_path: Path, objective: str, how: dict[str, str]
) -> None:
    """With numbers that are none where there is no answer: one that was read would end the run."""
    run = bench.run(tmp_path, objective=objective, **how)
    gather = run.train.features[SOURCE]
    rows = gather.rows.copy()
    rows[::2], rows[:20] = -1, -1
    run.train.features = {SOURCE: replace(gather, rows=rows)}
    read: list[int] = []
    whole = run.train.batches
    for indices in whole(8, 0, 0, source=SOURCE):
        read += indices.tolist()
    assert sorted(read) == np.flatnonzero(rows >= 0).tolist()
    _, losses = train_logged(run)
    assert len(losses) == 21
    assert np.isfinite(losses).all()
