"""Gives the codes of new codebooks the names of old ones, so that as many items as possible keep their codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from easyrec_mm.codes.codebooks import Codebooks, Codes, Level


def renamed(codebooks: Codebooks, old_codes: Codes, new_codes: Codes, old: Codebooks | None) -> Codebooks:
    """Return the codebooks with the names that an optimal assignment gives to their codes, one level after another.

    It maximizes the number of items that keep the code of the level and those of all levels before; then the number of
    items that keep the code of the level; then, between equal ones, the nearness of old and new centroids, which counts
    for codes without common items.

    Args:
      codebooks: new codebooks of the same shape.
      old_codes: the old codes of N items that have codes in both, int32 `[N, L]`, 0 for none.
      new_codes: their codes by the new codebooks, int32 `[N, L]`.
      old: the old codebooks, if their centroids can be compared with the new ones: those of the same vectors.
    """
    most = codebooks.shape.codes
    is_kept = np.ones(len(old_codes), bool)
    levels = []
    for place, level in enumerate(codebooks.levels):
        before, after = old_codes[:, place], new_codes[:, place]
        row = np.searchsorted(level.names, after)
        size = len(level.names), most
        gain = _counts(row[is_kept], before[is_kept], size)
        # Each of these is below 1 in total, beside the counts before it.
        gain += _counts(row, before, size) / (len(row) + 1)
        if old is not None:
            gain += _nearness(level, old.levels[place], most) / ((len(row) + 1) * (most + 1))
        _, columns = linear_sum_assignment(gain, maximize=True)
        names = (columns + 1).astype(np.int32)  # of each row: there are no more rows than names
        is_kept &= names[row] == before
        order = np.argsort(names)
        levels.append(Level(names[order], level.centroids[order]))
    return replace(codebooks, levels=tuple(levels))


def _counts(row: NDArray[np.int64], name: Codes, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return how many items have each pair of a new code's row and an old name, float64 of that size."""
    is_named = name > 0
    counts = np.zeros(size)
    np.add.at(counts, (row[is_named], name[is_named] - 1), 1)
    return counts


def _nearness(new: Level, old: Level, most: int) -> NDArray[np.float64]:
    """Return 1 for equal centroids, less for others, and 0 for names that no old centroid has."""
    nearness = np.zeros((len(new.names), most))
    distances = cdist(new.centroids, old.centroids)
    nearness[:, old.names - 1] = 1 - distances / (1 + distances.max())
    return nearness
