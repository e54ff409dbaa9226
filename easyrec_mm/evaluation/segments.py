"""Sums over segments of consecutive rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


def starts_of(*columns: npt.NDArray[Any]) -> Places:
    """Return the indices where segments of equal values begin in sorted columns `[N]`, N > 0."""
    changes: npt.NDArray[np.bool_] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.flatnonzero(np.concatenate([[True], changes]))


def segment_sums(values: npt.NDArray[Any], starts: Places) -> Floats:
    """Return the sums `[R, W]` of values `[N, W]` over segments that begin at `starts` `[R]`, the first at 0.

    This is a product with a sparse matrix of ones, because np.add.reduceat takes 20 times as long for short segments.
    """
    size = len(values)
    if len(starts) == size:
        return values.astype(np.float64)
    limits = np.append(starts, size)
    sums: Floats = csr_array((np.ones(size), np.arange(size), limits), shape=(len(starts), size)) @ values.astype(
        np.float64, copy=False
    )
    return sums
