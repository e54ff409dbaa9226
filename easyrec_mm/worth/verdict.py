"""Whether one arm is better than another: differences with intervals that hold for other rows and other seeds.

A difference has two sources of chance: which items (or users) the evaluation data hold, which the bootstrap tells
(estimates.py), and the seeds of the trainings. Their variances are added; the interval is that of Student's t with the
degrees of freedom of Welch and Satterthwaite (Satterthwaite, Biometrics 1946).

The main metric over all samples stands for itself. Of many others, and of slices, one in forty would show a gain where
there is none; so the intervals of each of these two families are widened to hold together (Bonferroni).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from easyrec_mm.evaluation.estimates import Estimate, mean_estimate, no_interval

PAYS, DOES_NOT, HARMS = "pays", "does not", "harms"

# Name of a result -> estimates of the seeds of an arm.
Estimates = Mapping[str, Sequence[Estimate]]


@dataclass(frozen=True)
class Gain:
    """How much better the first of two arms is by a metric; above 0 it is better, whatever the metric's direction.

    first, second  means over the seeds, as the metric has them
    value          NaN where the metric is not defined for one of them
    low, high      limits of the interval; NaN without one
    rows_error     standard error by the rows alone
    seeds_error    standard error by the seeds alone; NaN for one seed
    verdict        PAYS, DOES_NOT or HARMS; "" without an interval
    reason         why there is no interval, else ""
    """

    first: float
    second: float
    value: float
    low: float = math.nan
    high: float = math.nan
    rows_error: float = math.nan
    seeds_error: float = math.nan
    verdict: str = ""
    reason: str = ""


def gains(
    first: Estimates, second: Estimates, is_bigger: Mapping[str, bool], main: str, level: float
) -> dict[str, Gain]:
    """The gains by all metrics that both arms have, and by each slice; the order is that of the first arm.

    Args:
      first: the arm that may be better. All estimates are of the same rows and replicates.
      second: what it is compared with.
      is_bigger: name of a metric, without slice -> whether larger values are better.
      main: the main metric.
      level: with which its interval over all rows holds, those of the other metrics together, and those of slices.
    """
    names = [name for name in first if name in second and name.partition("/")[0] in is_bigger]

    def family(name: str) -> str:
        return "main" if name == main else "slices" if "/" in name else "others"

    # Of what has no samples nothing is said.
    sizes = Counter(family(name) for name in names if not no_interval(first[name][0]))
    return {
        name: gain(
            first[name],
            second[name],
            is_bigger[name.partition("/")[0]],
            1 - (1 - level) / max(1, sizes[family(name)]),
        )
        for name in names
    }


def gain(first: Sequence[Estimate], second: Sequence[Estimate], is_bigger: bool, level: float) -> Gain:
    """The gain of the mean over seeds, with its interval of that level."""
    one, other = mean_estimate(first), mean_estimate(second)
    sign = 1.0 if is_bigger else -1.0
    value = sign * (one.value - other.value)
    reason = no_interval(one) or no_interval(other)
    if reason:
        return Gain(one.value, other.value, value, reason=reason)
    rows_variance = float(np.nanvar(one.replicates - other.replicates, ddof=1))
    # Of the mean over the seeds of each arm; one seed tells none.
    seeds_variances = [float(np.var([e.value for e in arm], ddof=1)) / len(arm) for arm in (first, second) if arm[1:]]
    variances = [rows_variance, *seeds_variances]
    freedoms = [min(one.num_clusters, other.num_clusters) - 1, *(len(arm) - 1 for arm in (first, second) if arm[1:])]
    variance, half = sum(variances), 0.0
    if variance:
        freedom = variance**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
        half = float(student.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    low, high = value - half, value + half
    verdict = PAYS if low > 0 else HARMS if high < 0 else DOES_NOT
    seeds_error = math.sqrt(sum(seeds_variances)) if len(seeds_variances) == 2 else math.nan
    return Gain(one.value, other.value, value, low, high, math.sqrt(rows_variance), seeds_error, verdict)
