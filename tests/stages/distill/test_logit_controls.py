"""Controls of class logits: what each keeps of them, and what it takes away."""

import numpy as np
import numpy.typing as npt
import pytest
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.corpus.labels import MISSING
from armada.stages.distill.controls import Control, controlled
from armada.stages.distill.logit_controls import require_classes, smoothed
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.reading.reader import open_cache
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from small_caches import make_manifest, numbered_texts, write_cache

COUNT, CLASSES = 120, 5
TEXTS = numbered_texts(0, COUNT)
INDICES = np.arange(COUNT)
LABELS = np.where(INDICES % 10 == 3, MISSING, INDICES % CLASSES)


@pytest.fixture(scope="module")
def feature(tmp_path_factory: pytest.TempPathFactory) -> FeatureArray:
    """Standard normal logits [120, 5], float16."""
    path = tmp_path_factory.mktemp("cache")
    spec = FeatureSpec(name="logits", shape=(CLASSES,), dtype="float16")
    write_cache(path, make_manifest([spec]), [TEXTS[:50], TEXTS[50:]])
    return open_cache(path)["logits"]


def read(
    feature: FeatureArray, name: str, seed: int = 0, source: str = ""
) -> npt.NDArray[np.float32]:
    gather = controlled(feature, INDICES, Control(name), seed, source, LABELS)  # type: ignore[arg-type]
    assert gather.bytes == COUNT * CLASSES * 4
    return gather(INDICES)


def target_of(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.array(
        [
            row.argmax() if label == MISSING else label
            for row, label in zip(logits, LABELS, strict=True)
        ]
    )


def test_permuted_keeps_the_target_and_the_other_numbers(feature: FeatureArray) -> None:
    clean, changed = feature[:].astype(np.float64), read(feature, "permuted-classes")
    target = target_of(clean)
    np.testing.assert_array_equal(changed[INDICES, target], clean[INDICES, target])
    np.testing.assert_array_equal(np.sort(changed, axis=1), np.sort(clean, axis=1))
    stay = (changed == clean).all(axis=1).mean()
    assert 0 < stay < 0.12  # 1 in 24 permutations of four
    others = np.array([np.delete(row, at) for row, at in zip(changed, target, strict=True)])
    before = np.array([np.delete(row, at) for row, at in zip(clean, target, strict=True)])
    apart = [each - each.mean(axis=1, keepdims=True) for each in (others, before)]
    assert abs(np.corrcoef(*(each.ravel() for each in apart))[0, 1]) < 0.2


def test_permuted_is_a_function_of_seed_source_and_index(feature: FeatureArray) -> None:
    first = read(feature, "permuted-classes")
    np.testing.assert_array_equal(first, read(feature, "permuted-classes"))
    assert (first != read(feature, "permuted-classes", seed=1)).any()
    assert (first != read(feature, "permuted-classes", source="other")).any()
    gather = controlled(feature, INDICES, Control("permuted-classes"), 0, "", LABELS)
    np.testing.assert_array_equal(gather(np.array([77, 3])), first[[77, 3]])


def test_class_means_are_of_all_examples_of_a_class(feature: FeatureArray) -> None:
    clean = feature[:].astype(np.float64)
    target = target_of(clean)
    means = np.stack([clean[target == label].mean(axis=0) for label in range(CLASSES)])
    np.testing.assert_allclose(read(feature, "class-means"), means[target], rtol=1e-6, atol=1e-7)


def test_class_means_leave_out_what_is_not_cached(feature: FeatureArray) -> None:
    rows = np.where(INDICES < 20, INDICES, -1)
    gather = controlled(feature, rows, Control("class-means"), 0, "", LABELS)
    clean = feature[np.arange(20)].astype(np.float64)
    own = clean[target_of(feature[:].astype(np.float64))[:20] == 1].mean(axis=0)
    found = gather(np.array([1, 30]))
    np.testing.assert_allclose(found[0], own, rtol=1e-6, atol=1e-7)
    assert np.isnan(found[1]).all()


def test_smoothed_has_the_entropy_and_says_nothing_of_the_others(feature: FeatureArray) -> None:
    clean, changed = feature[:].astype(np.float64), read(feature, "smoothed").astype(np.float64)
    before, after = softmax(clean, axis=1), softmax(changed, axis=1)
    np.testing.assert_allclose(entropy(after, axis=1), entropy(before, axis=1), atol=2e-6)
    target = target_of(clean)
    np.testing.assert_array_equal(changed.argmax(axis=1), target)
    others = np.array([np.delete(row, at) for row, at in zip(changed, target, strict=True)])
    assert (others == others[:, :1]).all()


def test_smoothed_by_hand() -> None:
    # (0.9, 0.05, 0.05) has equal others already: it is its own smoothing.
    logits = np.log(np.array([[0.9, 0.05, 0.05]], dtype=np.float32))
    found = smoothed(logits, np.array([0]))
    np.testing.assert_allclose(found, logits, rtol=1e-5)
    np.testing.assert_allclose(smoothed(logits, np.array([2])), logits[:, [1, 2, 0]], rtol=1e-5)


@pytest.mark.parametrize(
    "logits", [[0.0, 0.0, 0.0], [3e4, -3e4, 0.0], [60.0, 0.0, 0.0], [1e-3, 0.0, 0.0]]
)
def test_smoothed_at_the_ends(logits: list[float]) -> None:
    found = smoothed(np.array([logits], dtype=np.float32), np.array([0])).astype(np.float64)
    assert np.isfinite(found).all()
    wanted = entropy(softmax(np.array(logits)))
    np.testing.assert_allclose(entropy(np.exp(log_softmax(found[0]))), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("permuted-classes", 2, "the teacher has 2 classes, so only one beside the target"),
        ("class-means", 1, "is for logits of two classes or more, not of 1"),
        ("smoothed", 1, "is for logits of two classes or more, not of 1"),
    ],
)
def test_refused_where_there_is_nothing_to_change(name: str, classes: int, message: str) -> None:
    with pytest.raises(JobError, match=message):
        require_classes(name, classes)
    for other in ("none", "shuffled", "noise"):
        require_classes(other, classes)
