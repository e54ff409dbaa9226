"""Makes codebooks by k-means, level by level, from a sample of the vectors that a seed and the keys alone decide."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin, pairwise_distances_argmin_min
from threadpoolctl import threadpool_limits

from easyrec_mm.codes.codebooks import Codebooks, Codes, Floats, Level, remainder
from easyrec_mm.stable_hash import hash_array, seeded
from easyrec_mm.store.codes import Shape
from easyrec_mm.store.keys import key_bytes

# Lloyd's algorithm gains little after these.
_MAX_ITERATIONS = 50


class Sample:
    """A sample of at most `most` of the vectors that are added: those whose keys have the smallest hashes.

    Therefore it depends neither on their order nor on the kind of the store. Twice as many are in memory at most.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._seed = most, seed
        self._hashes: list[NDArray[np.uint64]] = []
        self._vectors: list[Floats] = []
        self._codes: list[Codes] = []
        self._num_kept = 0

    def add(self, keys: Sequence[str], vectors: Floats, codes: Codes) -> None:
        """Add vectors `[N, D]`, their keys, and the codes that they had before, `[N, L]`, 0 for none."""
        encoded = np.empty(len(keys), object)
        encoded[:] = [key_bytes(key) for key in keys]
        self._hashes.append(seeded(hash_array(encoded), self._seed))
        self._vectors.append(vectors)
        self._codes.append(codes)
        self._num_kept += len(keys)
        if self._num_kept > 2 * self._most:
            self._cut()

    def drawn(self) -> tuple[Floats, Codes]:
        """Return the vectors `[N, D]` and the codes `[N, L]` of the sample, in the order of the hashes."""
        if not self._vectors:
            return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int32)
        self._cut()
        return self._vectors[0], self._codes[0]

    def _cut(self) -> None:
        hashes = np.concatenate(self._hashes)
        order = np.argsort(hashes, kind="stable")[: self._most]
        self._hashes, self._num_kept = [hashes[order]], len(order)
        self._vectors = [np.concatenate(self._vectors)[order]]
        self._codes = [np.concatenate(self._codes)[order]]


def fit(vectors: Floats, old_codes: Codes, shape: Shape, seed: int, fingerprint: str) -> Codebooks:
    """Return codebooks for vectors `[N, D]`, N from 1, whose codes are named from 1 in each level.

    K-means begins with the means of the vectors that had the same code before, whatever computed them then, so that it
    ends near the old codes; without old codes it begins with k-means++.

    Args:
      vectors: the vectors.
      old_codes: the codes that they had before, `[N, L]`, 0 for none.
      shape: the number of levels, and of codes per level at most.
      seed: of the beginning of k-means.
      fingerprint: that of the vectors.
    """
    levels = []
    rest = vectors
    # One thread: sums of several would have another rounding each time, and for so little work they mostly wait.
    with threadpool_limits(limits=1):
        for number in range(shape.levels):
            centroids = _centroids(rest, old_codes[:, number], shape.codes, seed + number)
            nearest = pairwise_distances_argmin(rest, centroids)
            used, nearest = np.unique(nearest, return_inverse=True)
            centroids = centroids[used]
            levels.append(Level(np.arange(1, len(used) + 1, dtype=np.int32), centroids))
            rest = remainder(rest, centroids[nearest], vectors)
    return Codebooks(shape, fingerprint, tuple(levels))


def _centroids(rest: Floats, old_codes: Codes, most: int, seed: int) -> Floats:
    """Return at most `most` centroids `[k, D]`; where there are no more distinct vectors than that, these."""
    distinct: dict[bytes, int] = {}
    for row, vector in enumerate(rest + np.float32(0)):  # -0.0 is 0.0
        distinct.setdefault(vector.tobytes(), row)
        if len(distinct) > most:
            break
    else:
        return rest[list(distinct.values())]
    first = _means(rest, old_codes, most, seed) if old_codes.any() else "k-means++"
    kmeans = KMeans(most, init=first, n_init=1, max_iter=_MAX_ITERATIONS, random_state=seed % (1 << 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of vectors that are almost equal
        kmeans.fit(rest)
    return np.asarray(kmeans.cluster_centers_, np.float32)


def _means(rest: Floats, old_codes: Codes, most: int, seed: int) -> Floats:
    """Return `most` vectors to begin with: the means of those with the same old code, and some that are far from these.

    The latter are drawn with a probability in proportion to the square of their distance, as k-means++ draws one.
    """
    names = np.unique(old_codes[old_codes > 0])
    means = np.stack([rest[old_codes == name].mean(axis=0) for name in names])
    if len(means) == most:
        return means
    _, distances = pairwise_distances_argmin_min(rest, means)
    squares = distances.astype(np.float64) ** 2 + np.finfo(np.float32).tiny  # all may be drawn
    number = most - len(means)
    drawn = np.random.default_rng(seed).choice(len(rest), number, replace=False, p=squares / squares.sum())
    return np.concatenate([means, rest[drawn]])
