"""Features that were added to a teacher later travel with the teacher that they were added to."""

from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.transfer.mirror import Mirror
from file_server import serving
from small_caches import answer, keys_of, numbered_texts, stored_bytes, write_cache
from transfers import FOLDER, MANIFEST, bring, serve_ready, visible

LATER = FeatureSpec(name="later", shape=(3,), dtype="float32")
SPEC = TeacherSpec(kind="made_up", name="made up", weights={}, settings={}, features=(LATER,))
ADDED = TeacherManifest(
    fingerprint=SPEC.fingerprint_extending(MANIFEST.fingerprint),
    rows_per_shard=64,
    spec=SPEC,
    extends=MANIFEST.fingerprint,
)
TEXTS = numbered_texts(0, 128)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose teacher got a feature later, asked for in another order."""
    path = tmp_path_factory.mktemp("extended")
    write_cache(path / "cache", MANIFEST, [TEXTS[:64], TEXTS[64:]])
    write_cache(path / "cache", ADDED, [TEXTS[64:], TEXTS[:64]])
    return serve_ready(path / "cache", path / "served")


def test_they_come_along(extended: Path, tmp_path: Path) -> None:
    bring(extended, tmp_path, teachers=(MANIFEST.fingerprint[:6],))
    assert visible(stored_bytes(tmp_path)) == visible(stored_bytes(extended))


def test_alone_they_bring_the_keys_they_are_joined_to(extended: Path, tmp_path: Path) -> None:
    with serving(extended) as server:
        bring(server.url, tmp_path, features=("later",))
        assert not any(f"{FOLDER}/pooled" in n or f"{FOLDER}/score" in n for n in server.asked)
    cache = open_cache(tmp_path)
    assert cache.features == ("later",)
    np.testing.assert_array_equal(cache["later"][cache.lookup(TEXTS)], answer(LATER, TEXTS))


def test_without_them(extended: Path, tmp_path: Path) -> None:
    bring(extended, tmp_path, features=("score",))
    assert [folder.name for folder in (tmp_path / "teachers").glob("*/score")] == ["score"]
    assert open_cache(tmp_path).features == ("score",)
    assert not (tmp_path / "teachers" / ADDED.fingerprint).exists()


def test_a_mirror_fetches_them_where_they_lie(extended: Path, tmp_path: Path) -> None:
    texts = TEXTS[70:80]
    with serving(extended) as server:
        mirror = Mirror(server.url, tmp_path)
        cache = mirror.narrowed(mirror.open(None), "later", keys_of(texts))
        mirror.fetch_ahead(cache, "later", keys_of(texts))
        np.testing.assert_array_equal(cache["later"][cache.lookup(texts)], answer(LATER, texts))
        asked = [name for name in server.asked if "/c/" in name]
        assert asked == [f"teachers/{ADDED.fingerprint}/later/c/0/0"]
