"""DeLong's test of the difference of two AUCs on the same rows, in the fast form.

DeLong, DeLong & Clarke-Pearson, Biometrics 1988; Sun & Xu, "Fast implementation of DeLong's algorithm for comparing the
areas under correlated receiver operating characteristic curves", IEEE Signal Processing Letters 2014.

The test assumes independent rows. If many rows belong to one item or user, its p-value is too small; the bootstrap of
clusters (estimates.py) does not have this problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DeLong:
    """AUCs of two predictions, `first - second` and its standard error, z and the two-sided p-value."""

    first: float
    second: float
    difference: float
    standard_error: float
    z: float
    p_value: float


def delong_test(labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> DeLong | None:
    """Compare the AUCs of two predictions for the same rows; return None if a class has fewer than two rows.

    Args:
      labels: `[N]`; above 0.5 is positive.
      first: predictions `[N]`.
      second: predictions `[N]` of the other model.
    """
    is_positive = np.asarray(labels) > 0.5
    num_positives, num_negatives = int(is_positive.sum()), int((~is_positive).sum())
    if min(num_positives, num_negatives) < 2:
        return None
    of_positives: list[Floats] = []
    of_negatives: list[Floats] = []
    for scores in (np.asarray(first), np.asarray(second)):
        ranks = rankdata(scores)  # tied scores get their mean rank
        # Share of negatives below each positive, and of positives above each negative; ties count half.
        below = (ranks[is_positive] - rankdata(scores[is_positive])) / num_negatives
        above = 1 - (ranks[~is_positive] - rankdata(scores[~is_positive])) / num_positives
        of_positives.append(below)
        of_negatives.append(above)
    covariance = np.cov(of_positives) / num_positives + np.cov(of_negatives) / num_negatives  # [2, 2]
    error = math.sqrt(max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    areas = [float(below.mean()) for below in of_positives]
    gap = areas[0] - areas[1]
    z = gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0
    return DeLong(areas[0], areas[1], gap, error, z, float(2 * ndtr(-abs(z))))
