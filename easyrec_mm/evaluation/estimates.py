"""What is known of a metric: its value, its bootstrap replicates, an interval, and the difference of two.

Estimates of models that were evaluated apart may be compared as long as rows, clusters, number of replicates and seed
were the same: replicate b then weighs the same rows equally for both (weights.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# An interval of which more of the replicates are undefined would tell of the rest alone.
_MAX_UNDEFINED_SHARE = 0.5


@dataclass(frozen=True)
class Estimate:
    """A metric and how it varies.

    value         over all rows; NaN where it is not defined
    replicates    float64 [B], over the rows of each bootstrap replicate; NaN where it is not defined
    reason        why `value` is not defined, else ""
    num_clusters  clusters of rows that were drawn
    """

    value: float
    replicates: Floats
    reason: str = ""
    num_clusters: int = 0


@dataclass(frozen=True)
class Difference:
    """Of two estimates: the first less the second.

    low, high  limits of the interval; NaN without one
    p_value    two-sided, by the bootstrap; NaN without one
    reason     why there is no interval, else ""
    """

    value: float
    low: float
    high: float
    p_value: float
    reason: str = ""


def no_interval(estimate: Estimate) -> str:
    """Why an estimate has no interval; "" if it has one."""
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
    """Limits of the percentile interval (Efron & Tibshirani, 1993, chapter 13) of that level; None without one."""
    if no_interval(estimate):
        return None
    tail = (1 - level) / 2
    low, high = np.nanquantile(estimate.replicates, [tail, 1 - tail])
    return float(low), float(high)


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of a metric over several models, such as the seeds of one config, on the same rows and replicates."""
    reason = next((estimate.reason for estimate in estimates if estimate.reason), "")
    return Estimate(
        float(np.mean([estimate.value for estimate in estimates])),
        np.mean([estimate.replicates for estimate in estimates], axis=0),
        reason,
        min(estimate.num_clusters for estimate in estimates),
    )


def difference(first: Estimate, second: Estimate, level: float) -> Difference:
    """The paired difference `first - second`, of the same rows in the same replicates.

    The p-value is the one that belongs to the percentile interval: twice the smaller share of the replicates on either
    side of 0 (Efron & Tibshirani, 1993, section 15.4), with 1 added to both counts so that it is never 0.

    Raises:
      ValueError: if the two have different numbers of replicates.
    """
    if len(first.replicates) != len(second.replicates):
        raise ValueError(f"{len(first.replicates)} and {len(second.replicates)} replicates; draw them alike")
    with np.errstate(invalid="ignore"):  # two infinite replicates have no difference: NaN
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
