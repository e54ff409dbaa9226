"""Bucket limits of numbers by their quantiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def quantile_boundaries(values: ArrayLike, num_buckets: int) -> list[float]:
    """Limits of at most `num_buckets` buckets that hold about as many values each.

    Bucket i holds boundaries[i-1] <= x < boundaries[i]; none is empty. A value that is there so often that it would be
    several limits is one.

    Args:
      values: numbers, of any shape; at least one.
      num_buckets: buckets wanted.

    Returns:
      Ascending, each a value that float32 holds exactly.
    """
    numbers = np.asarray(values, np.float32).ravel()
    shares = np.arange(1, num_buckets) / num_buckets
    limits = np.unique(np.quantile(numbers, shares, method="higher"))
    return [float(limit) for limit in limits[limits > numbers.min()]]
