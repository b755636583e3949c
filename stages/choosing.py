"""Which examples to compute first, where a budget does not suffice for all, and which points stand
for others.

Each rule puts N distinct examples into an order, best first; a budget takes the first of them. So
a larger one contains a smaller one of the same rule, seed and inputs. An order is a function of
these alone, not of what is cached: a run that is resumed, or has several processes, chooses the
same. In: keys [N, 16], classes [N], points [N, D] or probabilities [N, K]. Out: positions.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from ..cache_schemas.keys import IntArray, KeyArray

Floats = npt.NDArray[np.floating[Any]]


def in_random_order(keys: KeyArray, seed: int) -> IntArray:
    """All examples in an order that each one's key and the seed decide: that of two examples does
    not depend on the others, nor on the order of the corpus."""
    salt = seed.to_bytes(8, "little")
    hashes = b"".join(blake2b(key.tobytes(), digest_size=8, salt=salt).digest() for key in keys)
    return np.argsort(np.frombuffer(hashes, dtype="<u8"), kind="stable")


def balanced(classes: IntArray, shuffled: IntArray, missing: int) -> IntArray:
    """One example of each class in turn, as long as it has any, those of a class in the order
    `shuffled`; examples without a class, `missing`, come last."""
    of_class = classes[shuffled]
    by_class = np.argsort(of_class, kind="stable")
    sizes = np.unique(of_class, return_counts=True)[1]
    turn = np.empty(len(classes), dtype=np.int64)
    turn[by_class] = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return shuffled[np.lexsort((of_class, turn, of_class == missing))]


def most_uncertain(probabilities_NK: Floats, shuffled: IntArray) -> IntArray:
    """By the entropy of predicted probabilities, the highest first; equal ones as `shuffled`."""
    entropy = entr(probabilities_NK.astype(np.float64)).sum(axis=1)
    return shuffled[np.argsort(-entropy[shuffled], kind="stable")]


def k_center(points_ND: Floats, count: int, shuffled: IntArray) -> IntArray:
    """The first of `shuffled`, then always the point that is farthest from all chosen ones: no
    point is more than twice as far from one of them as with the best choice of so many
    (Gonzalez, Theoretical Computer Science 38, 1985). Time: count · N · D."""
    return _one_by_one(points_ND, count, shuffled, lambda nearest_N: int(nearest_N.argmax()))


def k_means_pp(points_ND: Floats, count: int, shuffled: IntArray, seed: int) -> IntArray:
    """The first of `shuffled`, then points drawn with a probability in proportion to the squared
    distance from the nearest chosen one: few outliers, where `k_center` takes all of them (Arthur
    and Vassilvitskii, SODA 2007). Time: count · N · D."""
    random = np.random.default_rng(seed)

    def draw(nearest_N: Floats) -> int:
        below = np.cumsum(nearest_N, dtype=np.float64)
        return int(np.searchsorted(below, random.random() * below[-1], side="right"))

    return _one_by_one(points_ND, count, shuffled, draw)


def _one_by_one(
    points_ND: Floats, count: int, shuffled: IntArray, choose: Callable[[Floats], int]
) -> IntArray:
    """So many points: the first of `shuffled`, then what `choose` makes of the squared distances
    [N] from the nearest chosen one; once nothing but copies of chosen points is left, the others as
    `shuffled`."""
    points_ND = points_ND.astype(np.float32)
    points_ND -= points_ND.mean(axis=0)  # distances are differences of products: small ones
    squares_N = np.einsum("nd,nd->n", points_ND, points_ND)
    rounding = 8 * np.finfo(np.float32).eps * squares_N.max()
    nearest_N = np.full(len(points_ND), np.inf, dtype=np.float32)
    chosen = [int(shuffled[0])]
    while len(chosen) < count:
        last = chosen[-1]
        apart_N = squares_N + squares_N[last] - 2 * (points_ND @ points_ND[last])
        np.minimum(nearest_N, np.where(apart_N > rounding, apart_N, 0), out=nearest_N)
        nearest_N[last] = 0
        if not nearest_N.any():
            break
        chosen.append(choose(nearest_N))
    left = shuffled[~np.isin(shuffled, chosen)]
    return np.concatenate([np.array(chosen, dtype=np.int64), left])[:count]
