"""Features of a teacher that extends another, read as features of the other."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import (
    CacheError,
    DamagedCacheError,
    MissingFeatureError,
    MissingKeysError,
    TeacherMismatchError,
)
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import TeacherManifest
from armada.stages.store.reading.feature_array import FeatureArray, JoinedArray
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.writing.teacher_folder import check_teacher
from small_caches import answer, keys_of, make_manifest, numbered_texts, write_cache

TEXTS = numbered_texts(0, 150)
BASE = make_manifest(seed=1)
LAYER = FeatureSpec(name="layer", shape=(2, 3), dtype="float16")
OTHER = FeatureSpec(name="other", shape=(), dtype="float32")


def extending(base: TeacherManifest, *features: FeatureSpec, **settings: int) -> TeacherManifest:
    spec = base.spec.model_copy(update={"features": features, "settings": settings})
    return TeacherManifest(
        fingerprint=spec.fingerprint_extending(base.fingerprint),
        rows_per_shard=192,
        spec=spec,
        extends=base.fingerprint,
    )


ADDED = extending(BASE, LAYER)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A teacher asked about 150 texts; to 130 of them, in another order, a feature was added."""
    write_cache(tmp_path / "cache", BASE, [TEXTS[:100], TEXTS[100:]])
    turned = TEXTS[::-1][:130]
    write_cache(tmp_path / "cache", ADDED, [turned[:50], turned[50:114], turned[114:]])
    return tmp_path / "cache"


@pytest.fixture
def cache(path: Path) -> Cache:
    return open_cache(path)


def test_an_added_feature_stands_beside_the_others(cache: Cache) -> None:
    assert cache.teacher == BASE
    assert cache.features == ("pooled", "score", "layer")
    assert "layer" in cache
    assert cache.feature_spec("layer") == LAYER
    feature = cache["layer"]
    assert (feature.shape, feature.dtype, feature.ndim) == ((150, 2, 3), np.float16, 3)
    rows = np.random.default_rng(0).permutation(np.arange(20, 150))
    expected = answer(LAYER, [TEXTS[row] for row in rows])
    np.testing.assert_array_equal(feature[rows], expected, strict=True)
    np.testing.assert_array_equal(feature.gather(rows), expected, strict=True)
    np.testing.assert_array_equal(feature[-1], answer(LAYER, TEXTS[-1:])[0])
    out = np.zeros((5, 2, 3), np.float16)
    feature.gather(rows[:5], out)
    np.testing.assert_array_equal(out, expected[:5])


def test_rows_can_be_announced_and_sorted_as_they_lie(cache: Cache) -> None:
    feature = cache["layer"]
    rows = np.arange(20, 150)
    feature.will_need(rows)
    assert (np.diff(feature.in_file_order(rows)) == -1).all()
    assert feature.mapped is None


def test_rows_that_lack_the_feature_are_counted_when_they_are_gathered(cache: Cache) -> None:
    told = (
        "feature 'layer': 3 of 5 rows do not have it yet; run `armada precompute --teacher "
        "made_up:made up --set add_features=true` on the texts, with the options that give layer"
    )
    with pytest.raises(MissingKeysError) as caught:
        cache["layer"].gather(np.array([30, 3, 40, 19, 0]))
    assert str(caught.value) == told
    assert caught.value.positions == [1, 3, 4]
    with pytest.raises(MissingKeysError):
        cache["layer"].will_need(np.array([3]))
    for row in (-1, 150):
        with pytest.raises(IndexError):
            cache["layer"].gather(np.array([row]))


def test_keys_are_found_with_all_features_or_not_at_all(cache: Cache) -> None:
    keys = keys_of([*TEXTS[18:22], "unknown"])
    assert cache.find(keys).tolist() == [18, 19, 20, 21, -1]
    assert cache.find(keys, "pooled").tolist() == [18, 19, 20, 21, -1]
    assert cache.find(keys, "layer", "score").tolist() == [-1, -1, 20, 21, -1]
    with pytest.raises(MissingFeatureError, match="has pooled, score, layer"):
        cache.find(keys, "nope")


def test_the_same_order_needs_no_map(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", BASE, [TEXTS[:100], TEXTS[100:]])
    write_cache(tmp_path / "cache", ADDED, [TEXTS[:64], TEXTS[64:128], TEXTS[128:]])
    feature = open_cache(tmp_path / "cache")["layer"]
    assert type(feature) is FeatureArray
    np.testing.assert_array_equal(feature[:], answer(LAYER, TEXTS))


def test_other_processes_get_the_map_too(cache: Cache) -> None:
    feature = pickle.loads(pickle.dumps(cache["layer"]))
    assert type(feature) is JoinedArray
    np.testing.assert_array_equal(feature[20:23], answer(LAYER, TEXTS[20:23]))


def test_a_teacher_comes_before_those_that_extend_it(path: Path) -> None:
    write_cache(path, extending(BASE, OTHER), [TEXTS])
    assert open_cache(path).teacher == BASE
    assert open_cache(path, "").teacher == BASE
    alone = open_cache(path, ADDED.fingerprint)
    assert (alone.teacher, alone.features, len(alone)) == (ADDED, ("layer",), 130)
    np.testing.assert_array_equal(alone["layer"][0], answer(LAYER, TEXTS[-1:])[0])


def test_two_teachers_still_have_to_be_told_apart(path: Path) -> None:
    write_cache(path, make_manifest(seed=2), [TEXTS[:3]])
    with pytest.raises(CacheError, match="holds several teachers; choose one"):
        open_cache(path)


def test_an_extension_without_its_teacher_is_a_teacher(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", ADDED, [TEXTS[:10]])
    assert open_cache(tmp_path / "cache").features == ("layer",)


def test_of_two_that_hold_a_feature_the_larger_is_read(path: Path) -> None:
    """As after a merge of caches to which the same feature was added in two ways."""
    larger = extending(BASE, LAYER, OTHER)
    write_cache(path, larger, [TEXTS[:60], TEXTS[60:]])
    feature = open_cache(path)["layer"]
    np.testing.assert_array_equal(feature[:], answer(LAYER, TEXTS))
    assert open_cache(path).features == ("pooled", "score", "layer", "other")


def test_the_document_says_what_is_extended_and_only_then(path: Path) -> None:
    documents = {
        name: json.loads((path / "teachers" / name / "teacher.json").read_bytes())
        for name in (BASE.fingerprint, ADDED.fingerprint)
    }
    assert list(documents[BASE.fingerprint]) == ["fingerprint", "rows_per_shard", "spec"]
    assert documents[ADDED.fingerprint]["extends"] == BASE.fingerprint


def test_the_extended_teacher_is_part_of_the_fingerprint(path: Path) -> None:
    again = extending(make_manifest(seed=2), LAYER)
    assert again.spec == ADDED.spec
    assert again.fingerprint != ADDED.fingerprint != ADDED.spec.fingerprint
    file = path / "teachers" / ADDED.fingerprint / "teacher.json"
    document = json.loads(file.read_bytes())
    for extends in (again.extends, None):
        file.write_text(json.dumps(document | {"extends": extends}))
        with pytest.raises(DamagedCacheError, match="is not that of the spec"):
            open_cache(path)


def test_other_settings_are_compared_with_those_of_the_extended_teacher(tmp_path: Path) -> None:
    listed_first = (extending(BASE, LAYER, number=number) for number in range(1000))
    added = next(known for known in listed_first if known.fingerprint < BASE.fingerprint)
    for manifest in (BASE, added):
        write_cache(tmp_path / "cache", manifest, [TEXTS[:3]])
    asked = make_manifest(seed=3).spec
    with pytest.raises(TeacherMismatchError, match=f"{BASE.fingerprint[:12]} .*: seed: cached 1"):
        check_teacher(tmp_path / "cache", asked, None, add_teacher=False)
