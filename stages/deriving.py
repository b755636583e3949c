"""Features derived from a cached one: statistics over all of its rows, and each row's part.

class-means  mean of the rows of each class                       -> the mean of the row's class
moments      mean and deviation of each number over all rows      -> the row, standardised
pca          principal components of all rows                     -> the row's coordinates
clusters     k-means centres of all rows                          -> the nearest centre, distances

In: rows X [N, H] of any float type, a block at a time. All sums are in float64, block by block in
the order of the rows; so the same rows in the same order give the same numbers, bit for bit, on one
machine, wherever they are stored. Memory: a block, and the statistics. N rows, H numbers of a row,
B rows of a block, K classes or clusters, C components.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..cache_schemas.errors import CacheError, JobError
from ..cache_schemas.keys import IntArray, example_key
from .choosing import k_means_pp
from .store.format.rows import Rows
from .store.reading.feature_array import FeatureArray
from .store.reading.reader import Cache

Floats = npt.NDArray[np.float64]

_BLOCK_BYTES = 64 * 2**20
_MOST_BLOCK_ROWS = 65536
_MOST_COVARIANCE = 16384
"""Numbers of a row whose covariance is computed: 2 GiB, a few times over."""
_SEEDING_ROWS = 16384
"""Centres begin at rows drawn from so many, or 32 for each centre if that is more."""


class Points(Protocol):
    """N rows of H numbers that can be read as often as needed."""

    width: int

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Index of the first row of each block, and its rows [B, H]."""

    def first(self, count: int) -> Floats:
        """So many of the first rows, or all."""


class CachedPoints:
    """Rows of a feature in a given order, each as a row of H numbers."""

    def __init__(self, feature: FeatureArray, rows: Rows) -> None:
        self._feature, self._rows = feature, rows
        self.width = feature.spec.values_per_row

    def __len__(self) -> int:
        return len(self._rows)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Blocks of 64 MiB, by their first row."""
        step = min(_MOST_BLOCK_ROWS, max(1, _BLOCK_BYTES // (8 * self.width)))
        for start in range(0, len(self._rows), step):
            yield start, self.take(slice(start, start + step))

    def first(self, count: int) -> Floats:
        """So many of the first rows, or all."""
        return self.take(slice(count))

    def take(self, part: slice | IntArray) -> Floats:
        """Some rows [B, H], read in the order of the files. Raises CacheError for numbers that are
        not finite."""
        rows = self._rows[part]
        order = np.argsort(self._feature.in_file_order(rows), kind="stable")
        self._feature.require_whole(rows)
        block_BH = np.empty((len(rows), self.width))
        block_BH[order] = self._feature.gather(rows[order]).reshape(len(rows), -1)
        finite_B = np.isfinite(block_BH).all(axis=1)
        if not finite_B.all():
            raise CacheError(
                f"feature {self._feature.spec.name!r}: {int((~finite_B).sum())} of {len(rows)} "
                "rows hold numbers that are not finite; check it with `armada cache verify`"
            )
        return block_BH


class Derived(ABC):
    """Statistics of all rows."""

    @abstractmethod
    def of(self, block_BH: Floats, indices_B: IntArray) -> dict[str, npt.NDArray[Any]]:
        """The derived features of rows, by name, [B, ...]; `indices_B` are their indices among all
        rows."""

    @property
    def table(self) -> Mapping[str, Floats]:
        """Name of a row of the statistics that is kept beside those of texts -> its numbers [H]."""
        return {}

    @property
    def found(self) -> dict[str, Any]:
        """Figures about them, for people."""
        return {}


class ClassMeans(Derived):
    """Means [K, H] of the rows of each class; feature `class_mean`: that of the row's class.

    Source: Wang et al., arXiv 2305.17007, who pull students' features towards them."""

    def __init__(self, points: Points, classes_N: IntArray, names: Sequence[str]) -> None:
        """`classes_N`: class of each row, from 0. Raises JobError for a class without a row."""
        self._classes_N, self._names = classes_N, tuple(names)
        counts_K = np.bincount(classes_N, minlength=len(names))
        if (empty := np.flatnonzero(counts_K == 0)).size:
            raise JobError(
                f"class-means: no row is of class {names[int(empty[0])]}, so it has no mean; leave "
                "it out of the labels, or add rows"
            )
        sums_KH = np.zeros((len(names), points.width))
        for start, block_BH in points.blocks():
            classes_B = classes_N[start : start + len(block_BH)]
            order = np.argsort(classes_B, kind="stable")
            there, first = np.unique(classes_B[order], return_index=True)
            sums_KH[there] += np.add.reduceat(block_BH[order], first, axis=0)
        self.means_KH = sums_KH / counts_K[:, None]
        self._counts_K = counts_K

    def of(self, block_BH: Floats, indices_B: IntArray) -> dict[str, npt.NDArray[Any]]:
        """`class_mean` [B, H]."""
        return {"class_mean": self.means_KH[self._classes_N[indices_B]]}

    @property
    def table(self) -> Mapping[str, Floats]:
        """The mean of each class, by its number."""
        return {str(number): mean for number, mean in enumerate(self.means_KH)}

    @property
    def found(self) -> dict[str, Any]:
        """Rows of each class."""
        return {"rows_of_class": dict(zip(self._names, self._counts_K.tolist(), strict=True))}


class Moments(Derived):
    """μ_h and σ_h, mean and standard deviation (divided by N) of each number over all rows; feature
    `logits`: (x_h - μ_h) / σ_h, the perception of LumiNet with the statistics of the whole cache in
    place of a batch's (Hossain et al., arXiv 2310.03669)."""

    def __init__(self, points: Points) -> None:
        """Raises JobError for a number that is the same in all rows."""
        total_H, squares_H, shift_H = np.zeros(points.width), np.zeros(points.width), None
        for _, block_BH in points.blocks():
            if shift_H is None:
                shift_H = block_BH.mean(axis=0)  # squares of small numbers: nothing cancels
            apart_BH = block_BH - shift_H
            total_H += apart_BH.sum(axis=0)
            squares_H += np.square(apart_BH).sum(axis=0)
        assert shift_H is not None
        mean_H = total_H / len(points)
        self.mean_H = shift_H + mean_H
        self.deviation_H = np.sqrt(np.maximum(squares_H / len(points) - mean_H**2, 0))
        constant = self.deviation_H <= 1e-12 * np.maximum(1, np.abs(self.mean_H))
        if constant.any():
            raise JobError(
                f"moments: number {int(np.flatnonzero(constant)[0])} of the feature is the same in "
                f"all {len(points)} rows, so it has no deviation to divide by"
            )

    def of(self, block_BH: Floats, indices_B: IntArray) -> dict[str, npt.NDArray[Any]]:
        """`logits` [B, H]."""
        return {"logits": (block_BH - self.mean_H) / self.deviation_H}

    @property
    def table(self) -> Mapping[str, Floats]:
        """Mean and deviation."""
        return {"mean": self.mean_H, "deviation": self.deviation_H}


class PrincipalComponents(Derived):
    """The C directions v_c of largest variance, by the eigenvectors of the covariance
    Σ (x - μ)(x - μ)ᵀ / N; feature `components`: v_cᵀ (x - μ). The largest number of each direction
    is positive, so that its sign is not left to chance. About the origin, μ is 0: then all H
    components are a rotation of x, which keeps lengths and cosines, and the first C of them the
    nearest that C numbers come to it."""

    def __init__(self, points: Points, count: int, centred: bool = True) -> None:
        """`centred`: directions about the mean, not about the origin. Raises JobError for more
        components than rows or numbers allow, for rows of very many numbers, and for rows that are
        all the same, or zero."""
        if points.width > _MOST_COVARIANCE:
            raise JobError(
                f"pca: rows of {points.width:,} numbers, whose covariance has the square of that; "
                f"at most {_MOST_COVARIANCE:,}"
            )
        most = min(points.width, len(points) - centred)
        if count > most:
            raise JobError(
                f"components: {count} of {len(points)} rows of {points.width} numbers; there are "
                f"at most {most}"
            )
        width, shift_H = points.width, None
        total_H, products_HH = np.zeros(width), np.zeros((width, width))
        for _, block_BH in points.blocks():
            if shift_H is None:
                shift_H = block_BH.mean(axis=0) if centred else np.zeros(width)
            apart_BH = block_BH - shift_H
            total_H += apart_BH.sum(axis=0)
            products_HH += apart_BH.T @ apart_BH
        assert shift_H is not None
        mean_H = total_H / len(points) if centred else np.zeros(width)
        covariance_HH = products_HH / len(points) - np.outer(mean_H, mean_H)
        variances_H, directions_HH = np.linalg.eigh(covariance_HH)
        total = float(np.trace(covariance_HH))
        if total <= 1e-20 * max(1.0, float(np.square(shift_H).sum())):
            what = "the same" if centred else "zero"
            raise JobError(f"pca: all {len(points)} rows are {what}; there is no variance")
        directions_CH = directions_HH[:, ::-1].T[:count]
        largest = np.abs(directions_CH).argmax(axis=1)
        signs_C = np.sign(directions_CH[np.arange(count), largest])
        self.mean_H = shift_H + mean_H
        self.directions_CH = directions_CH * signs_C[:, None]
        self.explained_C = np.maximum(variances_H[::-1][:count], 0) / total

    def of(self, block_BH: Floats, indices_B: IntArray) -> dict[str, npt.NDArray[Any]]:
        """`components` [B, C]."""
        return {"components": (block_BH - self.mean_H) @ self.directions_CH.T}

    @property
    def found(self) -> dict[str, Any]:
        """Share of the variance that each component explains, and all of them together."""
        shares = [round(share, 6) for share in self.explained_C.tolist()]
        return {"explained_variance": shares, "explained_together": round(sum(shares), 6)}


class Clusters(Derived):
    """K centres c_k by Lloyd's iterations over all rows; features `cluster`, the number of the
    nearest centre, and `logits` [K], -‖x - c_k‖², whose softmax with temperature T takes rows for
    draws from Gaussians of variance T/2 around the centres.

    Centres begin by k-means++ (Arthur and Vassilvitskii, SODA 2007) on the first 16,384 rows, or
    32 K, and move to the exact mean of their rows until none changes its centre, or so many
    `iterations`. Each row's nearest centre is exact up to float64, the lower number of two; that
    no other centres would be better is not. A centre that loses all its rows stays where it is."""

    def __init__(self, points: Points, count: int, seed: int, iterations: int) -> None:
        """Raises JobError for more clusters than distinct rows to begin with."""
        sample_SH = points.first(max(_SEEDING_ROWS, 32 * count))
        distinct = len(np.unique(sample_SH, axis=0)) if len(sample_SH) else 0
        if count > distinct:
            raise JobError(
                f"clusters: {count} of {distinct} distinct rows; name at most as many clusters"
            )
        chosen = k_means_pp(sample_SH, count, np.arange(len(sample_SH)), seed)
        self.centres_KH = sample_SH[np.sort(chosen)]
        nearest_N = np.full(len(points), -1, dtype=np.int64)
        self.iterations, self.converged = 0, False
        while self.iterations < iterations and not self.converged:
            self.converged = self._move(points, nearest_N)
            self.iterations += 1
        self._count(points)

    def _move(self, points: Points, nearest_N: IntArray) -> bool:
        """One iteration; whether no row changed its centre, in place in `nearest_N`."""
        sums_KH, counts_K = np.zeros_like(self.centres_KH), np.zeros(len(self.centres_KH))
        same = True
        for start, block_BH in points.blocks():
            nearest_B, _ = self._nearest(block_BH)
            there = slice(start, start + len(block_BH))
            same &= bool((nearest_N[there] == nearest_B).all())
            nearest_N[there] = nearest_B
            order = np.argsort(nearest_B, kind="stable")
            numbers, first = np.unique(nearest_B[order], return_index=True)
            sums_KH[numbers] += np.add.reduceat(block_BH[order], first, axis=0)
            counts_K += np.bincount(nearest_B, minlength=len(counts_K))
        full = counts_K > 0
        self.centres_KH[full] = sums_KH[full] / counts_K[full, None]
        return same

    def _count(self, points: Points) -> None:
        self.sizes_K, self.inertia = np.zeros(len(self.centres_KH), dtype=np.int64), 0.0
        for _, block_BH in points.blocks():
            nearest_B, squares_B = self._nearest(block_BH)
            self.inertia += float(squares_B.sum())
            self.sizes_K += np.bincount(nearest_B, minlength=len(self.sizes_K))

    def _nearest(self, block_BH: Floats) -> tuple[IntArray, Floats]:
        """The nearest centre of each row, and ‖x - c_k‖² of it, [B]: for so many rows at once that
        their distances to all centres are no more than a block."""
        nearest_B, squares_B = np.empty(len(block_BH), dtype=np.int64), np.empty(len(block_BH))
        step = max(1, _BLOCK_BYTES // (8 * len(self.centres_KH)))
        for start in range(0, len(block_BH), step):
            part = slice(start, start + step)
            squares_BK = self._squares(block_BH[part])
            nearest_B[part] = squares_BK.argmin(axis=1)
            squares_B[part] = squares_BK.min(axis=1)
        return nearest_B, squares_B

    def _squares(self, block_BH: Floats) -> Floats:
        """‖x - c_k‖² [B, K]."""
        middle_H = self.centres_KH.mean(axis=0)  # differences of small numbers
        apart_BH, centres_KH = block_BH - middle_H, self.centres_KH - middle_H
        squares_BK: Floats = np.square(apart_BH).sum(axis=1)[:, None] - 2 * apart_BH @ centres_KH.T
        squares_BK += np.square(centres_KH).sum(axis=1)
        return np.maximum(squares_BK, 0, out=squares_BK)

    def of(self, block_BH: Floats, indices_B: IntArray) -> dict[str, npt.NDArray[Any]]:
        """`cluster` [B] and `logits` [B, K]."""
        squares_BK = self._squares(block_BH)
        return {"cluster": squares_BK.argmin(axis=1), "logits": -squares_BK}

    @property
    def found(self) -> dict[str, Any]:
        """How the iterations ended."""
        return {
            "iterations": self.iterations,
            "converged": self.converged,
            "inertia": self.inertia,
            "smallest_cluster": int(self.sizes_K.min()),
            "largest_cluster": int(self.sizes_K.max()),
        }


def table_key(rule: str, name: str) -> bytes:
    """The key of a row of statistics, kept among the rows of texts in a derived teacher: that of
    the two segments 'armada:RULE' and the row's name."""
    return example_key((f"armada:{rule}", name))


def read_table(cache: Cache, feature: str, names: Sequence[str]) -> npt.NDArray[Any]:
    """Rows of statistics of a derived teacher by name: `class_mean` at '0' to 'K-1' are the class
    means [K, *shape], `logits` of moments at 'mean' and 'deviation'. Raises MissingKeysError."""
    rule = str(cache.teacher.spec.settings.get("rule"))
    rows = cache.lookup([table_key(rule, name) for name in names], feature)
    return np.asarray(cache[feature].gather(rows))
