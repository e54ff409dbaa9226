"""Estimates of a metric: the value, bootstrap replicates, intervals, and differences of two estimates.

Estimates of models that were evaluated separately may be compared if rows, clusters, number of replicates and seed
were the same: replicate b then gives each row the same weight for both models (weights.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# With a larger share of undefined replicates, an interval would describe only the defined ones.
_MAX_UNDEFINED_SHARE = 0.5


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its variation.

    value         over all rows; NaN if undefined
    replicates    float64 [B], over the rows of each bootstrap replicate; NaN where undefined
    reason        why `value` is undefined, else ""
    num_clusters  number of clusters of rows from which replicates are drawn
    """

    value: float
    replicates: Floats
    reason: str = ""
    num_clusters: int = 0


@dataclass(frozen=True)
class Difference:
    """The difference of two estimates: the first minus the second.

    low, high  limits of the interval; NaN without an interval
    p_value    two-sided p-value by the bootstrap; NaN without an interval
    reason     why the interval is missing; "" if it is known
    """

    value: float
    low: float
    high: float
    p_value: float
    reason: str = ""


def no_interval(estimate: Estimate) -> str:
    """Return why an estimate has no interval; "" if it has one."""
    if math.isnan(estimate.value):
        return estimate.reason
    if not len(estimate.replicates):
        return "there are no bootstrap replicates"
    if estimate.num_clusters < 2:
        return "all rows are of one cluster"
    if np.isnan(estimate.replicates).mean() > _MAX_UNDEFINED_SHARE:
        return "it is undefined in most bootstrap replicates"
    return ""


def interval(estimate: Estimate, level: float) -> tuple[float, float] | None:
    """Return the limits of the percentile interval (Efron & Tibshirani, 1993, chapter 13), or None without one."""
    if no_interval(estimate):
        return None
    tail = (1 - level) / 2
    low, high = np.nanquantile(estimate.replicates, [tail, 1 - tail])
    return float(low), float(high)


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Average a metric over several models, such as the seeds of one config, on the same rows and replicates."""
    reason = next((estimate.reason for estimate in estimates if estimate.reason), "")
    return Estimate(
        float(np.mean([estimate.value for estimate in estimates])),
        np.mean([estimate.replicates for estimate in estimates], axis=0),
        reason,
        min(estimate.num_clusters for estimate in estimates),
    )


def difference(first: Estimate, second: Estimate, level: float) -> Difference:
    """Return the paired difference `first - second` of estimates on the same rows and replicates.

    The p-value corresponds to the percentile interval: it is twice the smaller share of replicates on either side of 0
    (Efron & Tibshirani, 1993, section 15.4), with 1 added to both counts so that it is never 0.

    Raises:
      ValueError: if the two have different numbers of replicates.
    """
    if len(first.replicates) != len(second.replicates):
        raise ValueError(
            f"the estimates have {len(first.replicates)} and {len(second.replicates)} replicates; draw the same number"
        )
    with np.errstate(invalid="ignore"):  # the difference of two infinite replicates is NaN
        replicates = first.replicates - second.replicates
    differences = Estimate(
        first.value - second.value,
        replicates,
        first.reason or second.reason,
        min(first.num_clusters, second.num_clusters),
    )
    limits = interval(differences, level)
    if limits is None:
        return Difference(differences.value, math.nan, math.nan, math.nan, no_interval(differences))
    defined = differences.replicates[~np.isnan(differences.replicates)]
    least = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return Difference(differences.value, *limits, min(1.0, 2 * (1 + least) / (1 + len(defined))))
