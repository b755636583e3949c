"""Batches that are made ahead are the same batches, in any order that they are asked for."""

import threading
from typing import Any

import numpy as np
import pytest
from armada.stages.corpus.labels import MISSING
from armada.stages.distill.batches import DistillDataset, EpochBatches
from armada.stages.distill.language.batches import AheadDataset, pack
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import encode_texts
from tiny_language_models import TEXTS, make_chat_tokenizer


@pytest.fixture(scope="module")
def rows() -> Any:
    texts = encode_texts(make_chat_tokenizer(), Recipe(), [(text,) for text in TEXTS], 100)
    return pack(texts, "none", 100, 0)


def dataset(kind: type[DistillDataset], rows: Any) -> DistillDataset:
    return kind(rows, np.full(len(rows), MISSING), {})


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_an_epoch_is_made_ahead_in_another_thread(rows: Any) -> None:
    ahead, plain = dataset(AheadDataset, rows), dataset(DistillDataset, rows)
    threads = []
    real = type(rows).pad

    class Watched(type(rows)):  # type: ignore[misc]
        def pad(self, places: Any) -> Any:
            threads.append(threading.current_thread() is threading.main_thread())
            return real(self, places)

    object.__setattr__(
        ahead, "tokens", Watched(**{n: getattr(rows, n) for n in rows.__match_args__})
    )
    for places in EpochBatches(ahead, 2, seed=3):
        assert_same(ahead.__getitems__(places), plain.__getitems__(places))
    assert threads == [True, False, False]


def test_batches_that_are_passed_over_are_not_made(rows: Any) -> None:
    """As a resumed run passes over those of before."""
    ahead, plain = dataset(AheadDataset, rows), dataset(DistillDataset, rows)
    batches = iter(EpochBatches(ahead, 1, seed=3))
    for _ in range(3):
        next(batches)
    assert ahead._coming is None
    last = [next(batches), next(batches)]
    assert_same(ahead.__getitems__(last[1]), plain.__getitems__(last[1]))
    assert_same(ahead.__getitems__(last[0]), plain.__getitems__(last[0]))


def test_what_fails_ahead_fails_where_it_is_asked_for(
    rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = dataset(AheadDataset, rows)
    ahead.expect(np.array([len(rows)]))
    ahead.__getitems__([0])
    with pytest.raises(IndexError):
        ahead.__getitems__([len(rows)])
