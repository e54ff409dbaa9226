"""Metrics of vectors and classes: whether the nearest vectors belong to items of the same class.

The similarity of two vectors is their cosine. An item is compared with all others, never with itself. Shapes: N items,
D width of a vector, K neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Classes = NDArray[np.int64]
# Numbers of similarities that are in memory at a time.
_MOST_SIMILARITIES = 1 << 24
_SHORTEST = 1e-12


def nearest(vectors: Array, k: int) -> NDArray[np.int64]:
    """Return the rows of the k nearest other vectors, the nearest first: int64 `[N, K]`.

    Equally near vectors are ordered by their rows.

    Raises:
      ValueError: if there are not k others.
    """
    if not 0 < k < len(vectors):
        raise ValueError(f"{len(vectors)} vectors do not have {k} neighbours each")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SHORTEST)
    rows = []
    size = max(1, _MOST_SIMILARITIES // len(unit))
    for start in range(0, len(unit), size):
        similarity = unit[start : start + size] @ unit.T
        own = np.arange(len(similarity))
        similarity[own, start + own] = -np.inf
        rows.append(np.argsort(-similarity, axis=1, kind="stable")[:, :k])
    return np.concatenate(rows)


def recall_at(classes: Classes, neighbours: NDArray[np.int64], k: int) -> float:
    """Return the share of items with an item of their class among their k nearest: recall@k of metric learning
    (Jegou et al., TPAMI 2011; Oh Song et al., CVPR 2016). Items that are alone in their class do not count.

    Args:
      classes: int64 `[N]`.
      neighbours: result of `nearest`, with k columns or more.
      k: as above.
    """
    counted = num_others(classes) > 0
    is_same = classes[neighbours[:, :k]] == classes[:, None]
    return _mean(is_same.any(1)[counted])


def mean_precision_at(classes: Classes, neighbours: NDArray[np.int64], k: int) -> float:
    """Return mMP@k, the mean over items of the share of their class among their k nearest; arguments as `recall_at`.

    An item whose class has n < k other items is measured at n (the modified mean precision of the Google Universal
    Image Embedding challenge, 2022). Items that are alone in their class do not count.
    """
    most = np.minimum(num_others(classes), k)
    is_same = classes[neighbours[:, :k]] == classes[:, None]
    is_same &= np.arange(k) < most[:, None]
    counted = most > 0
    return _mean(is_same.sum(1)[counted] / most[counted])


def knn_accuracy(classes: Classes, neighbours: NDArray[np.int64], k: int) -> float:
    """Return the share of items whose class has most of the votes of their k nearest; arguments as for `recall_at`.

    Of classes with as many votes, that of the nearest item wins.
    """
    voters = classes[neighbours[:, :k]]  # [N, K]
    votes = (voters[:, :, None] == voters[:, None, :]).sum(2)
    chosen = np.take_along_axis(voters, np.argmax(votes, axis=1)[:, None], 1)[:, 0]
    return _mean(chosen == classes)


def num_others(classes: Classes) -> NDArray[np.int64]:
    """Return how many others of its class each item has: int64 `[N]`."""
    _, place, counts = np.unique(classes, return_inverse=True, return_counts=True)
    others: NDArray[np.int64] = counts[place] - 1
    return others


def _mean(values: NDArray[np.bool_] | NDArray[np.float64]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
