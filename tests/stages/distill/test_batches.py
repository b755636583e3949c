"""Batches: which examples, in which order, with which features."""

import math
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.distill import batches as batches_module
from armada.stages.distill.batches import DistillDataset, EpochBatches, as_batch
from armada.stages.distill.controls import Control, Gather, controlled, other_indices
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.order import epoch_order
from armada.stages.distill.student_models import load_tokenizer
from armada.stages.distill.tokens import encode
from armada.stages.store.reading.prefetch import BlockOrder
from armada.stages.store.reading.reader import Cache
from hangs import HANG_S
from small_caches import answer
from thin_caches import cut_into_shards, numbered_rows, thin_feature
from tiny_runs import FEATURES, MAX_LENGTH, TEXTS, class_labels, make_cache
from torch.utils.data import DataLoader

LABELS = class_labels(len(TEXTS))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def dataset(checkpoint, cache: Cache) -> DistillDataset:
    tokens = encode(load_tokenizer(checkpoint("bert")), [(t,) for t in TEXTS], MAX_LENGTH)
    rows = cache.lookup(TEXTS)
    assert not np.array_equal(rows, np.arange(len(TEXTS)))  # the cache has them in another order
    gather = controlled(cache["embedding"], rows, Control("none"), 0)
    return DistillDataset(tokens, LABELS, {SOURCE: gather})


@pytest.fixture
def make_dataset(checkpoint, cache: Cache, monkeypatch) -> Callable[..., DistillDataset]:
    """Makes a data set of some texts, in blocks of 8, three a window, or not."""
    monkeypatch.setattr(batches_module, "BLOCK_ROWS", 8)
    monkeypatch.setattr(batches_module, "BLOCKS_PER_WINDOW", 3)

    def make(
        texts: list[str],
        shuffle: str,
        control: str = "none",
        gather: Gather | None = None,
    ) -> DistillDataset:
        tokens = encode(load_tokenizer(checkpoint("bert")), [(t,) for t in texts], MAX_LENGTH)
        if gather is None and control != "undistilled":
            gather = controlled(cache["embedding"], cache.lookup(texts), Control(control), 0)
        dataset = DistillDataset(tokens, LABELS[: len(texts)], {SOURCE: gather} if gather else {})
        if shuffle == "block" and gather is not None:
            dataset.follow_shards(SOURCE)
        return dataset

    return make


def loaded(dataset: DistillDataset, seed: int, epoch: int) -> list[dict[str, Any]]:
    """The batches of an epoch as a trainer gets them."""
    batches = EpochBatches(dataset, 8, seed)
    batches.set_epoch(epoch)
    return list(DataLoader(dataset, batch_sampler=batches, collate_fn=as_batch))


# --- order


@pytest.mark.parametrize("shuffle", ["full", "block"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 53])
def test_every_example_comes_once_an_epoch(make_dataset, count, shuffle):
    batches = EpochBatches(make_dataset(TEXTS[:count], shuffle), 8, seed=0)
    for epoch in range(3):
        batches.set_epoch(epoch)
        made = list(batches)
        assert Counter(place for batch in made for place in batch) == Counter(range(count))
        assert [len(batch) for batch in made[:-1]] == [8] * (len(made) - 1)
        assert len(made) == len(batches) == -(-count // 8)


def test_the_order_is_a_function_of_seed_and_epoch(dataset):
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            batches = EpochBatches(dataset, 8, seed)
            batches.set_epoch(2 - epoch)  # what was asked before does not matter
            list(batches)
            batches.set_epoch(epoch)
            order = [place for batch in batches for place in batch]
            assert order == epoch_order(53, seed, epoch).tolist()
            # Written down in NumPy's terms: other versions of armada have the same order.
            expected = np.random.default_rng([seed, epoch, 0]).permutation(53)
            assert order == expected.tolist()
            orders[seed, epoch] = order
    assert all(a != b for a, b in pairwise(sorted(orders.values())))


def test_blocks_are_examples_whose_features_lie_together(make_dataset, cache):
    """Three of the seven blocks a window; batches go across windows."""
    batches = EpochBatches(make_dataset(TEXTS, "block"), 10, seed=4)
    rows = cache.lookup(TEXTS)
    orders = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        order = np.concatenate(list(batches))
        orders.append(order.tolist())
        expected = BlockOrder(rows, 8, 3).windows(4, epoch)
        assert order.tolist() == np.concatenate(list(expected)).tolist()
        blocks = rows[order] // 8
        windows = [set(blocks[:24]), set(blocks[24:48]), set(blocks[48:])]
        if 6 in blocks[48:]:  # the block that is not full comes last
            assert [len(window) for window in windows] == [3, 3, 1]
    assert orders[0] != orders[1]


def test_blocks_follow_what_a_control_reads(make_dataset, cache):
    dataset = make_dataset(TEXTS, "block", "shuffled")
    read = cache.lookup(TEXTS)[other_indices(len(TEXTS), 0)]
    order = np.concatenate(list(dataset.batches(8, 0, 0)))
    expected = BlockOrder(read, 8, 3).windows(0, 0)
    assert order.tolist() == np.concatenate(list(expected)).tolist()


def test_without_features_there_are_no_blocks(make_dataset):
    dataset = make_dataset(TEXTS, "block", "undistilled")
    order = np.concatenate(list(dataset.batches(8, 3, 1)))
    assert order.tolist() == epoch_order(len(TEXTS), 3, 1).tolist()


def test_what_is_skipped_is_not_read_ahead(make_dataset, tmp_path):
    """A run that resumes goes through the batches it has had: their features stay on disk."""
    touched: set[int] = set()
    values = numbered_rows(len(TEXTS), FEATURES[0])
    shards = cut_into_shards(values, [8] * 6 + [5])
    feature = thin_feature(
        tmp_path, FEATURES[0], shards, 64, prepare=lambda name, shard: touched.add(shard)
    )
    rows = np.random.default_rng(0).permutation(len(TEXTS))
    dataset = make_dataset(TEXTS, "block", gather=Gather(feature, rows))
    skipped, window, following = BlockOrder(rows, 8, 3).windows(0, 0)
    batches = list(dataset.batches(8, 0, 0))
    assert touched == set()
    for number, places in enumerate(dataset.batches(8, 0, 0)):
        if number >= math.ceil(len(skipped) / 8):
            batch = dataset.aligner_batch(places)
            break
    assert places.tolist() == batches[number].tolist()
    np.testing.assert_array_equal(batch["features"][SOURCE].numpy(), values[rows[places]])
    expected = set(rows[[*window, *following]] // 8)
    deadline = time.monotonic() + HANG_S
    while touched != expected:
        assert time.monotonic() < deadline, (touched, expected)
        time.sleep(0.01)


def test_streams_are_independent():
    student, aligner = epoch_order(53, 0, 0), epoch_order(53, 0, 0, stream=1)
    assert sorted(student) == sorted(aligner)
    assert student.tolist() != aligner.tolist()


def test_the_global_generators_have_no_say(dataset):
    torch.manual_seed(1)
    np.random.seed(1)
    first = loaded(dataset, 0, 0)
    torch.manual_seed(2)
    np.random.seed(2)
    for one, other in zip(first, loaded(dataset, 0, 0), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# --- content


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_batch_joins_text_label_and_feature_by_key(dataset, cache, checkpoint, epoch):
    tokenizer = load_tokenizer(checkpoint("bert"))
    order = epoch_order(len(TEXTS), 5, epoch)
    seen = 0
    for batch in loaded(dataset, 5, epoch):
        places = order[seen : seen + len(batch["labels"])]
        seen += len(places)
        texts = [TEXTS[place] for place in places]
        # By the text the student reads, not by place:
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        torch.testing.assert_close(batch["input_ids"], encoded["input_ids"])
        feature = batch["features"][SOURCE].numpy()
        np.testing.assert_array_equal(feature, cache["embedding"][cache.lookup(texts)])
        np.testing.assert_array_equal(feature, answer(FEATURES[0], texts), strict=True)
        assert batch["labels"].tolist() == [LABELS[place] for place in places]
    assert seen == len(TEXTS)


def test_the_order_of_the_corpus_does_not_matter(dataset, cache, checkpoint):
    """A shuffled half of the corpus: the same features for the same texts."""
    half = np.random.default_rng(0).permutation(len(TEXTS))[:26]
    texts = [TEXTS[place] for place in half]
    tokens = encode(load_tokenizer(checkpoint("bert")), [(t,) for t in texts], MAX_LENGTH)
    gather = controlled(cache["embedding"], cache.lookup(texts), Control("none"), 0)
    other = DistillDataset(tokens, LABELS[half], {SOURCE: gather})
    batch, expected = other.__getitems__([0, 9]), dataset.__getitems__(half[[0, 9]].tolist())
    assert batch.pop("indices").tolist() == [0, 9]
    assert expected.pop("indices").tolist() == half[[0, 9]].tolist()
    torch.testing.assert_close(batch, expected)


def test_one_example_is_a_batch_of_one(dataset):
    one = dataset[7]
    assert one["masked"] is False
    one = {name: tensor for name, tensor in one.items() if name != "masked"}
    assert {name: len(tensor) for name, tensor in one.items()} == dict.fromkeys(one, 1)
    again = dataset.__getitems__([7])
    torch.testing.assert_close(one, {name: again[name] for name in one})


def test_an_aligner_sees_labels_and_features_only(dataset):
    batch = dataset.aligner_batch(np.array([3, 50]))
    whole = dataset.__getitems__([3, 50])
    assert set(batch) == {"labels", "features"}
    torch.testing.assert_close(batch, {name: whole[name] for name in batch})


def test_without_features_a_batch_has_none(dataset, checkpoint):
    tokens = encode(load_tokenizer(checkpoint("bert")), [(t,) for t in TEXTS], MAX_LENGTH)
    plain = DistillDataset(tokens, LABELS, {})
    tensors = {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert set(plain[0]) == {*tensors, "indices", "masked"}


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        pytest.param(LABELS, torch.int64, id="classes"),
        pytest.param(LABELS / 7, torch.float32, id="numbers"),
    ],
)
def test_labels_have_the_type_a_loss_takes(checkpoint, labels, dtype):
    tokens = encode(load_tokenizer(checkpoint("bert")), [(t,) for t in TEXTS], MAX_LENGTH)
    dataset = DistillDataset(tokens, labels, {})
    assert dataset[3]["labels"].dtype == dtype
    assert dataset[3]["labels"].item() == pytest.approx(labels[3])


def test_time_spent_on_batches_is_counted(dataset):
    before = dataset.seconds
    loaded(dataset, 0, 0)
    assert dataset.seconds > before
