"""Negatives that are drawn from a source for each batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from armada.stages.distill.batches import DistillDataset
from armada.stages.distill.controls import Control, Gather, controlled
from armada.stages.distill.negatives import draw
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.processes import Processes
from armada.stages.distill.student_models import load_tokenizer
from armada.stages.distill.tokens import encode
from tiny_runs import MAX_LENGTH, TEXTS, Bench, class_labels, make_cache, train_logged

BATCH = np.array([3, 1, 4, 15, 9])


def test_they_are_other_texts_and_a_function_of_seed_source_and_batch() -> None:
    rows = np.arange(200)
    found = draw(rows, BATCH, 40, 0, "")
    assert len(set(found.tolist())) == 40
    assert not set(found.tolist()) & set(BATCH.tolist())
    assert np.array_equal(draw(rows, BATCH, 40, 0, ""), found)
    for other in ((BATCH, 40, 1, ""), (BATCH, 40, 0, "b"), (BATCH[::-1], 40, 0, "")):
        assert not np.array_equal(draw(rows, *other), found)


def test_texts_of_the_batch_are_left_out_wherever_they_come_again() -> None:
    """Three texts, each a hundred times, and one without a feature."""
    rows = np.resize([0, 1, 2, -1], 400)
    found = draw(rows, np.array([0, 4]), 150, 0, "")
    assert len(set(found.tolist())) == 150
    assert set(rows[found].tolist()) == {1, 2}
    assert len(draw(rows, np.array([0, 1]), 150, 0, "")) == 100  # there are no more
    assert len(draw(rows, np.array([0, 1, 2]), 150, 0, "")) == 0


def test_each_text_is_drawn_as_often() -> None:
    counts = np.zeros(50)
    for seed in range(2000):
        counts[draw(np.arange(50), BATCH, 9, seed, "")] += 1
    others = np.delete(counts, BATCH)
    assert others.sum() == 18000
    # 400 each; of a binomial distribution, 6 deviations of 18 are not met by chance.
    assert np.abs(others - 400).max() < 6 * 18


@pytest.fixture(scope="module")
def dataset(checkpoint, tmp_path_factory) -> DistillDataset:
    cache = make_cache(tmp_path_factory.mktemp("negatives") / "cache")
    gather = controlled(cache["embedding"], cache.lookup(TEXTS), Control("none"), 0)
    tokens = encode(load_tokenizer(checkpoint("bert")), [(t,) for t in TEXTS], MAX_LENGTH)
    made = DistillDataset(tokens, class_labels(len(TEXTS)), {SOURCE: gather})
    made.draws, made.draw_seed = {SOURCE: 7}, 5
    return made


def test_a_batch_has_their_features_and_labels(dataset: DistillDataset) -> None:
    negatives = dataset.__getitems__(BATCH.tolist())["negatives"][SOURCE]
    drawn = draw(dataset.features[SOURCE].rows, BATCH, 7, 5, SOURCE)
    expected = dataset.features[SOURCE](drawn)
    assert np.array_equal(negatives.features.numpy(), expected)
    assert np.array_equal(negatives.labels.numpy(), class_labels(len(TEXTS))[drawn])
    assert len(negatives.first(3).features) == len(negatives.first(3).labels) == 3


def test_all_processes_have_the_same(dataset: DistillDataset) -> None:
    found = []
    for rank in range(2):
        dataset.processes = Processes(rank, 2)
        found.append(dataset.__getitems__(BATCH.tolist())["negatives"][SOURCE].features)
    dataset.processes = Processes()
    assert torch.equal(*found)


def test_texts_that_a_batch_has_twice(dataset: DistillDataset) -> None:
    """By their rows in the cache; rows without a feature are none."""
    gather = dataset.features[SOURCE]
    assert dataset.repeats(BATCH) == {}
    rows = gather.rows.copy()
    rows[[1, 4]], rows[9] = -1, rows[3]
    dataset.features = {SOURCE: replace(gather, rows=rows)}
    assert dataset.repeats(np.array([1, 4, 3])) == {}
    assert dataset.repeats(BATCH)[SOURCE].tolist() == rows[BATCH].tolist()
    dataset.features = {SOURCE: gather}


def test_an_objective_is_told_of_all_examples_without_negatives_too(bench: Bench, tmp_path) -> None:
    """The constant of crd is of the training set, as it is with negatives."""
    run = bench.run(tmp_path, objective="crd", epochs=1)
    train_logged(run)
    assert run.model.objective.examples == len(TEXTS)


def test_where_features_lie_is_of_no_matter(bench: Bench, tmp_path) -> None:
    """And more negatives make another loss."""
    how = {"objective": "infonce", "epochs": 1}
    runs = {
        (placement, count): bench.run(
            tmp_path / f"{placement}-{count}",
            placement=placement,
            weights={"negatives": count},
            **how,
        )
        for placement, count in (("mapped", 20), ("resident", 20), ("mapped", 5))
    }
    losses = {name: train_logged(run)[1] for name, run in runs.items()}
    assert losses["mapped", 20] == losses["resident", 20]
    assert losses["mapped", 20] != losses["mapped", 5]


def test_rows_without_a_feature_are_never_drawn(bench: Bench, tmp_path) -> None:
    """Their features are NaN, of which no loss is finite."""
    run = bench.run(tmp_path, objective="crd", weights={"negatives": 12}, epochs=1)
    gather = run.train.features[SOURCE]
    assert isinstance(gather, Gather)
    rows = np.where(np.arange(len(gather.rows)) % 3, gather.rows, -1)
    run.train.features = {SOURCE: replace(gather, rows=rows)}
    _, losses = train_logged(run)
    assert np.isfinite(losses).all()
    drawn = run.train.negatives_of(BATCH)[SOURCE]
    assert run.model.objective.examples == int((rows >= 0).sum())
    assert drawn.features.isfinite().all()
