"""Bucket limits of numbers, fitted to their values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


def quantile_boundaries(values: Sequence[float] | NDArray[Any], num_buckets: int) -> tuple[float, ...]:
    """Return limits that divide `values` into at most `num_buckets` buckets with about equally many values each.

    They are meant for `FeatureConfig.boundaries`, whose bucket i holds boundaries[i-1] <= x < boundaries[i]. Each limit
    is one of the values: equal values share a bucket, and no bucket is empty. A value that is more frequent than a
    bucket's share has a bucket of its own, and the other values are divided among the remaining buckets. With
    numeric_transform, min_val or max_val, give the values after these were applied.

    Args:
      values: only finite ones count; NaN stands for a missing one.
      num_buckets: 1 or more.

    Returns:
      Ascending limits, distinct as float32, with as few decimal digits as that requires; () if nothing can be divided.
    """
    if num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets}; give 1 or more")
    numbers = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        numbers = numbers[np.isfinite(numbers)].astype(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return ()
    distinct, counts = np.unique(numbers, return_counts=True)
    limits: list[np.float32] = []
    left, here = len(numbers), 0  # number of values that are in no bucket yet, and of those in the current bucket
    for i, (before, count) in enumerate(pairwise(counts.tolist()), 1):
        num_more = num_buckets - 1 - len(limits)  # buckets that can still be started
        if not num_more:
            break
        here += before
        share = left / (num_more + 1)
        # A bucket ends before this value if that is nearer to its share, or if each remaining value can have its own.
        if share - here <= here + count - share or len(distinct) - i <= num_more:
            limits.append(distinct[i])
            left, here = left - here, 0
    return tuple(float(str(limit)) for limit in limits)
