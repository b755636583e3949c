"""Statistics over all rows of a feature: NumPy in one piece, whatever the blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from armada.cache_schemas.errors import JobError
from armada.stages.deriving import ClassMeans, Clusters, Moments, PrincipalComponents

N, H, K = 210, 6, 3
RANDOM = np.random.default_rng(5)
CLASSES = RANDOM.integers(K, size=N)
CENTRES = RANDOM.standard_normal((K, H)) * 20
ROWS = CENTRES[CLASSES] + RANDOM.standard_normal((N, H)) * np.arange(1, H + 1) + 1000
ALL = np.arange(N)


@dataclass(frozen=True)
class InBlocks:
    """Rows, so many at a time."""

    rows: npt.NDArray[Any]
    size: int = 37

    @property
    def width(self) -> int:
        return int(self.rows.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
        for start in range(0, len(self.rows), self.size):
            yield start, self.rows[start : start + self.size].astype(np.float64)

    def first(self, count: int) -> npt.NDArray[np.float64]:
        return self.rows[:count].astype(np.float64)


def test_class_means() -> None:
    found = ClassMeans(InBlocks(ROWS), CLASSES, ("a", "b", "c"))
    expected = np.stack([ROWS[number == CLASSES].mean(axis=0) for number in range(K)])
    np.testing.assert_allclose(found.means_KH, expected, rtol=1e-13)
    np.testing.assert_array_equal(
        found.of(ROWS[:9], ALL[:9])["class_mean"], found.means_KH[CLASSES[:9]]
    )
    np.testing.assert_array_equal(found.table["2"], found.means_KH[2])
    assert found.found["rows_of_class"]["b"] == int((CLASSES == 1).sum())
    with pytest.raises(JobError, match="no row is of class d, so it has no mean"):
        ClassMeans(InBlocks(ROWS), CLASSES, ("a", "b", "c", "d"))


def test_moments() -> None:
    found = Moments(InBlocks(ROWS))
    np.testing.assert_allclose(found.mean_H, ROWS.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.deviation_H, ROWS.std(axis=0), rtol=1e-11)
    perceived = found.of(ROWS, ALL)["logits"]
    np.testing.assert_allclose(perceived.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(perceived.std(axis=0), 1, rtol=1e-10)
    np.testing.assert_array_equal(found.table["deviation"], found.deviation_H)
    constant = ROWS.copy()
    constant[:, 4] = 0.1
    with pytest.raises(JobError, match="number 4 of the feature is the same in all 210 rows"):
        Moments(InBlocks(constant))


def test_moments_by_hand() -> None:
    found = Moments(InBlocks(np.array([[1.0, 0.0], [3.0, 4.0]]), 1))
    np.testing.assert_array_equal(found.mean_H, [2, 2])
    np.testing.assert_array_equal(found.deviation_H, [1, 2])


def test_principal_components() -> None:
    found = PrincipalComponents(InBlocks(ROWS), 4)
    apart = ROWS - ROWS.mean(axis=0)
    _, singular, directions = np.linalg.svd(apart, full_matrices=False)
    signs = np.sign([row[np.abs(row).argmax()] for row in directions[:4]])
    np.testing.assert_allclose(found.directions_CH, directions[:4] * signs[:, None], atol=1e-10)
    shares = singular**2 / (singular**2).sum()
    np.testing.assert_allclose(found.explained_C, shares[:4], rtol=1e-10)
    projected = found.of(ROWS, ALL)["components"]
    np.testing.assert_allclose(projected, apart @ found.directions_CH.T, atol=1e-9)
    assert found.found["explained_variance"] == [round(share, 6) for share in shares[:4].tolist()]


def test_components_about_the_origin_are_a_rotation() -> None:
    found = PrincipalComponents(InBlocks(ROWS), 6, centred=False)
    _, singular, directions = np.linalg.svd(ROWS, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.directions_CH @ directions.T), np.eye(6), atol=1e-9)
    rotated = found.of(ROWS, ALL)["components"]
    np.testing.assert_allclose(rotated @ rotated.T, ROWS @ ROWS.T, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=0), singular, rtol=1e-9)
    fewer = PrincipalComponents(InBlocks(ROWS), 2, centred=False)
    np.testing.assert_array_equal(fewer.of(ROWS, ALL)["components"], rotated[:, :2])
    assert len(PrincipalComponents(InBlocks(ROWS[:4]), 4, centred=False).directions_CH) == 4
    with pytest.raises(JobError, match="all 5 rows are zero; there is no variance"):
        PrincipalComponents(InBlocks(np.zeros((5, 3))), 1, centred=False)


@pytest.mark.parametrize(
    ("rows", "count", "message"),
    [
        (ROWS, 7, "components: 7 of 210 rows of 6 numbers; there are at most 6"),
        (ROWS[:4], 4, "components: 4 of 4 rows of 6 numbers; there are at most 3"),
        (np.zeros((2, 16385)), 1, "pca: rows of 16,385 numbers, whose covariance has the square"),
        (np.ones((9, 3)) * 0.1, 1, "all 9 rows are the same; there is no variance"),
    ],
)
def test_no_components(rows: npt.NDArray[Any], count: int, message: str) -> None:
    with pytest.raises(JobError, match=message):
        PrincipalComponents(InBlocks(rows), count)


def test_clusters_find_what_is_there() -> None:
    found = Clusters(InBlocks(ROWS), K, seed=0, iterations=50)
    assert found.converged
    features = found.of(ROWS, ALL)
    squares = np.square(ROWS[:, None] - found.centres_KH).sum(axis=2)
    np.testing.assert_allclose(-features["logits"], squares, rtol=1e-9, atol=1e-8)
    np.testing.assert_array_equal(features["cluster"], squares.argmin(axis=1))
    # Each centre is the mean of its rows, and clusters are the classes under other names.
    for number in range(K):
        own = ROWS[features["cluster"] == number]
        np.testing.assert_allclose(found.centres_KH[number], own.mean(axis=0), rtol=1e-12)
    pairs = {(int(a), int(b)) for a, b in zip(features["cluster"], CLASSES, strict=True)}
    assert len(pairs) == K
    np.testing.assert_allclose(found.inertia, squares.min(axis=1).sum(), rtol=1e-9)
    assert found.sizes_K.sum() == N


def test_distances_to_many_centres_take_no_more_than_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Clusters(InBlocks(ROWS), K, seed=0, iterations=3)
    monkeypatch.setattr("armada.stages.deriving._BLOCK_BYTES", 8 * K * 5)
    asked, squares = list[int](), Clusters._squares
    monkeypatch.setattr(
        Clusters, "_squares", lambda self, rows: asked.append(len(rows)) or squares(self, rows)
    )
    parts = Clusters(InBlocks(ROWS), K, seed=0, iterations=3)
    assert max(asked) == 5
    np.testing.assert_allclose(parts.centres_KH, whole.centres_KH, rtol=1e-12)
    assert parts.sizes_K.tolist() == whole.sizes_K.tolist()


def test_clusters_are_a_function_of_the_seed() -> None:
    first, again, other = (
        Clusters(InBlocks(ROWS), 8, seed, iterations=3).centres_KH for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert not Clusters(InBlocks(ROWS), 8, 0, iterations=1).converged


def test_more_clusters_than_distinct_rows() -> None:
    rows = np.repeat(ROWS[:3], 5, axis=0)
    with pytest.raises(JobError, match="clusters: 4 of 3 distinct rows; name at most as many"):
        Clusters(InBlocks(rows), 4, 0, 10)
    assert Clusters(InBlocks(rows), 3, 0, 10).inertia < 1e-12 * (ROWS**2).sum()
