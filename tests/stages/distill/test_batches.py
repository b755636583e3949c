"""Batches: which examples, in which order, with which features."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.distill.batches import DistillDataset, EpochBatches, as_batch, epoch_order
from armada.stages.distill.controls import Control, controlled
from armada.stages.distill.student_source import load_tokenizer
from armada.stages.distill.tokens import encode
from armada.stages.store.reader import Cache
from small_caches import answer
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
    return DistillDataset(tokens, LABELS, controlled(cache["embedding"], rows, Control("none"), 0))


def loaded(dataset: DistillDataset, seed: int, epoch: int) -> list[dict[str, Any]]:
    """The batches of an epoch as a trainer gets them."""
    batches = EpochBatches(len(dataset), 8, seed)
    batches.set_epoch(epoch)
    return list(DataLoader(dataset, batch_sampler=batches, collate_fn=as_batch))


# --- order


@pytest.mark.parametrize("count", [1, 7, 8, 9, 53])
def test_every_example_comes_once_an_epoch(count):
    batches = EpochBatches(count, 8, seed=0)
    for epoch in range(3):
        batches.set_epoch(epoch)
        made = list(batches)
        assert Counter(place for batch in made for place in batch) == Counter(range(count))
        assert [len(batch) for batch in made[:-1]] == [8] * (len(made) - 1)
        assert len(made) == len(batches) == -(-count // 8)


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            batches = EpochBatches(53, 8, seed)
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
        feature = batch["feature"].numpy()
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
    other = DistillDataset(tokens, LABELS[half], gather)
    torch.testing.assert_close(
        other.__getitems__([0, 9]), dataset.__getitems__([int(half[0]), int(half[9])])
    )


def test_one_example_is_a_batch_of_one(dataset):
    one = dataset[7]
    assert {name: len(tensor) for name, tensor in one.items()} == dict.fromkeys(one, 1)
    torch.testing.assert_close(one, dataset.__getitems__([7]))


def test_an_aligner_sees_labels_and_features_only(dataset):
    batch = dataset.aligner_batch(np.array([3, 50]))
    whole = dataset.__getitems__([3, 50])
    assert set(batch) == {"labels", "feature"}
    torch.testing.assert_close(batch, {name: whole[name] for name in batch})


def test_without_features_a_batch_has_none(dataset, checkpoint):
    tokens = encode(load_tokenizer(checkpoint("bert")), [(t,) for t in TEXTS], MAX_LENGTH)
    plain = DistillDataset(tokens, LABELS, None)
    assert set(plain[0]) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        pytest.param(LABELS, torch.int64, id="classes"),
        pytest.param(LABELS / 7, torch.float32, id="numbers"),
    ],
)
def test_labels_have_the_type_a_loss_takes(checkpoint, labels, dtype):
    tokens = encode(load_tokenizer(checkpoint("bert")), [(t,) for t in TEXTS], MAX_LENGTH)
    dataset = DistillDataset(tokens, labels, None)
    assert dataset[3]["labels"].dtype == dtype
    assert dataset[3]["labels"].item() == pytest.approx(labels[3])


def test_time_spent_on_batches_is_counted(dataset):
    before = dataset.seconds
    loaded(dataset, 0, 0)
    assert dataset.seconds > before
