"""Cached features in anybody's own DataLoader, against the answers that were cached."""

import pickle
from pathlib import Path
from typing import Any

import armada
import numpy as np
import pytest
import torch
from armada import CacheDataset, open_cache
from armada.cache_schemas.errors import CacheError, MissingFeatureError, MissingKeysError
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from file_server import serving
from small_caches import TWO_FEATURES, answer, make_manifest, numbered_texts, write_cache
from torch.utils.data import DataLoader, StackDataset
from transfers import serve_ready

TEXTS = numbered_texts(0, 150)
MANIFEST = make_manifest(rows_per_shard=64)
POOLED, SCORE = TWO_FEATURES
LATER = FeatureSpec(name="later", shape=(3,), dtype="float32")
ADDED = TeacherSpec(kind="made_up", name="made up", weights={}, settings={}, features=(LATER,))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 texts with two features; 64 of them with one that was added later."""
    path = tmp_path_factory.mktemp("dataset") / "cache"
    write_cache(path, MANIFEST, [TEXTS[:64], TEXTS[64:128], TEXTS[128:]])
    later = TeacherManifest(
        fingerprint=ADDED.fingerprint_extending(MANIFEST.fingerprint),
        rows_per_shard=64,
        spec=ADDED,
        extends=MANIFEST.fingerprint,
    )
    write_cache(path, later, [TEXTS[32:96]])
    return path


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_batches_in_any_loader(cache: Path, start: str | None) -> None:
    texts = [*TEXTS[100:50:-1], *TEXTS[:7]]
    dataset = CacheDataset(cache, texts, ["score", "pooled"])
    assert len(dataset) == len(texts)
    assert repr(dataset) == "<CacheDataset of 57 texts: score float32[], pooled float16[5]>"
    workers = {"num_workers": 2, "multiprocessing_context": start} if start else {}
    found = list(DataLoader(dataset, batch_size=16, **workers))
    assert [len(batch["score"]) for batch in found] == [16, 16, 16, 9]
    for spec in (SCORE, POOLED):
        values = torch.cat([batch[spec.name] for batch in found]).numpy()
        np.testing.assert_array_equal(values, answer(spec, texts), strict=True)


def test_beside_other_columns(cache: Path) -> None:
    texts = TEXTS[20:60]
    both = StackDataset(text=texts, teacher=CacheDataset(open_cache(cache), texts, "pooled"))
    draw = torch.Generator().manual_seed(0)
    seen = []
    for batch in DataLoader(both, batch_size=16, shuffle=True, generator=draw):
        seen += batch["text"]
        np.testing.assert_array_equal(batch["teacher"]["pooled"], answer(POOLED, batch["text"]))
    assert seen != texts
    assert sorted(seen) == sorted(texts)


def test_single_examples(cache: Path) -> None:
    dataset = CacheDataset(str(cache), iter(TEXTS[:5]), "pooled")
    np.testing.assert_array_equal(dataset[-1]["pooled"], answer(POOLED, TEXTS[4:5])[0])
    assert len(list(dataset)) == 5  # type: ignore[call-overload]
    assert dataset.specs == {"pooled": POOLED}
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[2]["pooled"], dataset[2]["pooled"])


def test_texts_of_several_columns(tmp_path: Path) -> None:
    pairs = [{"one": f"a {n}", "other": f"b {n}"} for n in range(5)]
    armada.precompute(
        corpus=pairs, text_column=["one", "other"], teacher="hash:3", cache=tmp_path / "cache"
    )
    asked = list(zip((p["one"] for p in pairs), (p["other"] for p in pairs), strict=True))
    dataset = CacheDataset(tmp_path / "cache", asked)
    opened = open_cache(tmp_path / "cache")
    expected = opened["embedding"][opened.lookup(asked)]
    np.testing.assert_array_equal([row["embedding"] for row in dataset], expected)  # type: ignore[attr-defined]
    with pytest.raises(MissingKeysError, match="5 of 5 examples are not in the cache"):
        CacheDataset(tmp_path / "cache", [pair[::-1] for pair in asked])


def test_features_along_an_axis(tmp_path: Path) -> None:
    texts = ["one", "two of them", "words, words, words"]
    rows = [{"text": text} for text in texts]
    armada.precompute(corpus=rows, text_column="text", teacher="hash_words:2", cache=tmp_path / "c")
    dataset = CacheDataset(tmp_path / "c", texts)
    (batch,) = DataLoader(dataset, batch_size=3, collate_fn=dataset.collate)
    assert batch["words"].shape == (3, 3, 2)
    assert batch["words_lengths"].tolist() == [1, 3, 3]
    assert batch["word_bytes"].dtype == torch.int64
    assert batch["word_bytes"].tolist() == [[3, 0, 0], [3, 2, 4], [6, 6, 5]]
    stored = open_cache(tmp_path / "c")
    one = stored.ragged("words")[int(stored.lookup("two of them")[0])]
    np.testing.assert_array_equal(batch["words"][1], one)


@pytest.mark.parametrize("start", [None, "spawn"])
def test_from_a_url(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    with serving(serve_ready(cache, tmp_path / "served")) as server:
        dataset = CacheDataset(server.url, TEXTS, "pooled")
        assert not any("/pooled/c/" in name for name in server.asked), "none was asked for yet"
        workers = {"num_workers": 2, "multiprocessing_context": start} if start else {}
        loader = DataLoader(dataset, batch_size=50, **workers)
        found = torch.cat([batch["pooled"] for batch in loader]).numpy()
    np.testing.assert_array_equal(found, answer(POOLED, TEXTS))


@pytest.mark.parametrize(
    ("texts", "features", "error", "message"),
    [
        (
            [*TEXTS[:3], "who?", "what?"],
            "pooled",
            MissingKeysError,
            "2 of 5 examples are not in the cache of teacher .*; run `armada precompute` on them. "
            "First: 3: 'who",
        ),
        (TEXTS[30:34], None, MissingKeysError, "2 of 4 examples .* with later; run `armada"),
        (TEXTS[:2], "poled", MissingFeatureError, "has pooled, score, later"),
        ("text 1", None, CacheError, "texts 'text 1': is a single text; give a list of texts"),
    ],
    ids=["no text", "no feature of it", "no feature", "a text alone"],
)
def test_refused(cache: Path, texts: Any, features: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        CacheDataset(cache, texts, features)
    assert "\n" not in str(caught.value)
