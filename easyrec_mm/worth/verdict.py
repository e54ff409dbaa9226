"""Decides whether one arm is better than another, by differences whose intervals hold for other rows and seeds.

A difference has two random sources: the choice of items (or users) in the evaluation data, which the bootstrap
estimates (estimates.py), and the seeds of the trainings. Their variances are added; the interval is that of Student's t
distribution with the degrees of freedom of Welch and Satterthwaite (Satterthwaite, Biometrics 1946).

The main metric over all samples is judged alone. Among many other metrics, or many slices, one in forty would show a
gain by chance; therefore the intervals of each of these two families are widened to hold jointly (Bonferroni).
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

    first, second  means of the metric over the seeds of each arm
    value          the gain; NaN if the metric is undefined for one of the arms
    low, high      limits of the interval; NaN without an interval
    rows_error     standard error due to the rows alone
    seeds_error    standard error due to the seeds alone; NaN for one seed
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
    """Return the gains by all metrics that both arms have, over all rows and per slice, in the order of the first arm.

    Args:
      first: the arm that may be better. All estimates are of the same rows and replicates.
      second: the arm to compare it with.
      is_bigger: name of a metric, without slice -> whether larger values are better.
      main: the main metric.
      level: confidence level of its interval over all rows, of the other metrics' intervals jointly, and of the slices'
        intervals jointly.
    """
    names = [name for name in first if name in second and name.partition("/")[0] in is_bigger]

    def family(name: str) -> str:
        return "main" if name == main else "slices" if "/" in name else "others"

    # Results without an interval, such as those of empty slices, do not count.
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
    """Return the gain of the mean over seeds, with its interval of the given level."""
    mean, other_mean = mean_estimate(first), mean_estimate(second)
    sign = 1.0 if is_bigger else -1.0
    value = sign * (mean.value - other_mean.value)
    reason = no_interval(mean) or no_interval(other_mean)
    if reason:
        return Gain(mean.value, other_mean.value, value, reason=reason)
    rows_variance = float(np.nanvar(mean.replicates - other_mean.replicates, ddof=1))
    # Variance of the mean over the seeds of each arm; it cannot be estimated from one seed.
    seeds_variances = [float(np.var([e.value for e in arm], ddof=1)) / len(arm) for arm in (first, second) if arm[1:]]
    variances = [rows_variance, *seeds_variances]
    freedoms = [
        min(mean.num_clusters, other_mean.num_clusters) - 1,
        *(len(arm) - 1 for arm in (first, second) if arm[1:]),
    ]
    variance, half = sum(variances), 0.0
    if variance:
        freedom = variance**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
        half = float(student.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    low, high = value - half, value + half
    verdict = PAYS if low > 0 else HARMS if high < 0 else DOES_NOT
    seeds_error = math.sqrt(sum(seeds_variances)) if len(seeds_variances) == 2 else math.nan
    return Gain(mean.value, other_mean.value, value, low, high, math.sqrt(rows_variance), seeds_error, verdict)
