"""Bucket limits of a number, fitted to its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def quantile_boundaries(values: Sequence[float] | NDArray[Any], num_buckets: int) -> tuple[float, ...]:
    """Values that divide `values` into at most `num_buckets` buckets of about as many each.

    For `FeatureConfig.boundaries`, whose bucket i holds boundaries[i-1] <= x < boundaries[i]. Each limit is one of the
    values, so that none that many samples have is cut off from its equals, and no bucket is empty; where a value is
    that frequent, there are fewer buckets. With numeric_transform, min_val or max_val, give what they make of the
    values.

    Args:
      values: finite ones count; NaN stands for a missing one.
      num_buckets: 1 or more.

    Returns:
      Ascending, distinct also in float32, in the fewest decimal digits that say so; () if there is nothing to divide.
    """
    if num_buckets < 1:
        raise ValueError(f"{num_buckets} buckets are none")
    numbers = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        numbers = numbers[np.isfinite(numbers)].astype(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return ()
    shares = np.arange(1, num_buckets) / num_buckets
    limits = np.unique(np.quantile(numbers, shares, method="higher"))
    return tuple(float(str(limit)) for limit in limits if limit > numbers.min())
