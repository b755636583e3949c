"""The controls: what they read instead of the feature of an example."""

import math
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.distill.controls import Control, controlled, other_indices, parse_control
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.reading.reader import open_cache
from small_caches import make_manifest, numbered_texts, write_cache

COUNT, SHAPE = 300, (40,)
TEXTS = numbered_texts(0, COUNT)
PLACES = np.arange(COUNT)


@pytest.fixture(scope="module")
def feature(tmp_path_factory: pytest.TempPathFactory) -> FeatureArray:
    """Standard normal numbers, [300, 40], in the order of TEXTS."""
    path = tmp_path_factory.mktemp("cache")
    spec = FeatureSpec(name="embedding", shape=SHAPE, dtype="float32")
    write_cache(path, make_manifest([spec]), [TEXTS[:100], TEXTS[100:200], TEXTS[200:]])
    return open_cache(path)["embedding"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Control("none")),
        ("undistilled", Control("undistilled")),
        ("random-aligner", Control("random-aligner")),
        ("shuffled", Control("shuffled")),
        ("noise=0", Control("noise", 0.0)),
        ("noise=0.5", Control("noise", 0.5)),
        ("noise=1e2", Control("noise", 100.0)),
    ],
)
def test_parse(text, expected):
    assert parse_control(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "random", "noise", "noise=", "noise=-1", "noise=nan", "noise=inf", "noise=a", "none=1"],
)
def test_parse_refuses(text):
    with pytest.raises(
        JobError, match="is not none, undistilled, random-aligner, shuffled, permuted-classes"
    ):
        parse_control(text)


def test_none_reads_what_is_cached(feature):
    rows = PLACES[::-1].copy()
    gather = controlled(feature, rows, Control("none"), seed=0)
    chosen = np.array([4, 0, 4, 299])
    np.testing.assert_array_equal(gather(chosen), feature[rows[chosen]], strict=True)


# --- shuffled


@pytest.mark.parametrize("count", [2, 3, 10, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_is_a_permutation_that_moves_all(count, seed):
    places = other_indices(count, seed)
    assert sorted(places) == list(range(count))
    assert (places != np.arange(count)).all()


def test_shuffled_depends_on_the_seed_only(feature):
    first, again, other = (
        controlled(feature, PLACES, Control("shuffled"), seed) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first(PLACES), again(PLACES))
    assert not np.array_equal(first(PLACES), other(PLACES))
    # An example keeps its wrong feature, whatever batch it is in.
    np.testing.assert_array_equal(first(PLACES[[7, 200]]), first(PLACES)[[7, 200]])


def test_shuffled_reads_the_features_of_others(feature):
    rows = PLACES[::-1].copy()
    read = controlled(feature, rows, Control("shuffled"), seed=0)(PLACES)
    own = feature[rows]
    assert not (read == own).all(axis=1).any()
    np.testing.assert_array_equal(np.sort(read, axis=0), np.sort(own, axis=0))


def test_every_place_is_as_likely():
    """Of 3 places there are two cyclic orders; over many seeds each comes half of the time."""
    seeds = 1000
    first = sum(other_indices(3, seed)[0] == 1 for seed in range(seeds))
    # Binomial: five standard deviations.
    assert abs(first - seeds / 2) < 5 * math.sqrt(seeds) / 2


# --- noise


def noise(feature: FeatureArray, sigma: float, seed: int, places=PLACES) -> np.ndarray:
    read = controlled(feature, PLACES, Control("noise", sigma), seed)(places)
    assert read.dtype == np.float32
    return read - feature[places]


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_noise_has_the_spread_it_says(feature, sigma):
    """SIGMA times the spread of the feature's own numbers around their mean."""
    numbers = COUNT * SHAPE[0]
    spread = np.sqrt(np.var(feature[PLACES].astype(np.float64), axis=0).mean())
    added = noise(feature, sigma, seed=0).astype(np.float64) / (sigma * spread)
    # Of N normal numbers the mean strays by 1/sqrt(N), the spread by 1/sqrt(2N): five of each.
    assert abs(added.mean()) < 5 / math.sqrt(numbers)
    assert abs(added.std() - 1) < 5 / math.sqrt(2 * numbers)
    # The fourth moment of a normal distribution is 3, give or take sqrt(96/N).
    assert abs((added**4).mean() - 3) < 5 * math.sqrt(96 / numbers)


def test_noise_differs_by_example_and_seed_but_not_by_epoch_or_batch(feature):
    gather = controlled(feature, PLACES, Control("noise", 1.0), seed=0)
    first = gather(PLACES)
    np.testing.assert_array_equal(first, gather(PLACES))
    np.testing.assert_array_equal(gather(np.array([250, 3])), first[[250, 3]])
    added = noise(feature, 1.0, seed=0)
    assert len(np.unique(added[:, 0])) == COUNT
    other = noise(feature, 1.0, seed=1)
    correlation = np.corrcoef(added.ravel(), other.ravel())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(added.size)


def test_no_noise_is_exact(feature):
    assert not noise(feature, 0.0, seed=0).any()


def test_half_precision_is_read_in_full(tmp_path: Path):
    spec = FeatureSpec(name="latent", shape=(2, 3), dtype="float16")
    write_cache(tmp_path, make_manifest([spec]), [TEXTS[:10]])
    array = open_cache(tmp_path)["latent"]
    read = controlled(array, np.arange(10), Control("noise", 0.001), seed=0)(np.arange(4))
    assert (read.shape, read.dtype) == ((4, 2, 3), np.float32)
    assert 0 < np.abs(read - array[np.arange(4)].astype(np.float32)).max() < 0.01
