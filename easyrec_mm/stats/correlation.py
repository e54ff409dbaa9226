"""Correlations of fields with labels, in a sample of rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

# Random orders of the labels with which the strength of values that are no numbers is compared.
_NUM_ORDERS = 20
# With fewer rows a correlation would be noise.
_MIN_ROWS = 30


class Correlation(NamedTuple):
    """The correlation of a field with a label.

    strength  of numbers: Pearson's r, -1 to 1; of other values: the share of the label's deviation that they explain,
              0 to 1, corrected for the number of different values (Kelley's epsilon, 1935); 0 if labels in a random
              order give as much, as they do for values of which nearly every one occurs once
    auc       of a number for a label of 0 and 1; else None
    """

    strength: float
    auc: float | None = None


def correlate(field: pd.Series, label: pd.Series, is_number: bool) -> Correlation | None:
    """Return the correlation in rows with both values; None for too few rows, or if one of the two is constant."""
    has_both = field.notna() & label.notna()
    values, targets = field[has_both], label[has_both].to_numpy(np.float64)
    if len(values) < _MIN_ROWS or targets.min() == targets.max() or values.nunique() < 2:
        return None
    if not is_number:
        return Correlation(_strength(pd.factorize(values)[0], targets))
    numbers = values.to_numpy(np.float64)
    if numbers.min() == numbers.max():  # large whole numbers that differ in digits beyond those of float64
        return None
    is_binary = bool(np.isin(targets, (0, 1)).all())
    return Correlation(float(np.corrcoef(numbers, targets)[0, 1]), _auc(numbers, targets) if is_binary else None)


def _strength(codes: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return epsilon, or 0 if it is not larger than those of the same labels in random orders."""
    epsilon = _epsilon(codes, targets)
    random = np.random.default_rng(0)
    chance = max(_epsilon(codes, random.permutation(targets)) for _ in range(_NUM_ORDERS))
    return epsilon if epsilon > chance else 0.0


def _epsilon(codes: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return sqrt(1 - (SS_within / (n - k)) / (SS_total / (n - 1))), or 0 if undefined, for n rows of k values."""
    number = np.bincount(codes)
    freedom = len(codes) - len(number)
    if freedom <= 0:
        return 0.0
    means = np.bincount(codes, targets) / number
    within = float(np.square(targets - means[codes]).sum())
    total = float(np.square(targets - targets.mean()).sum())
    return float(max(1 - within / freedom * (len(codes) - 1) / total, 0.0) ** 0.5)


def _auc(numbers: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return the share of pairs of a 1 and a 0 in which the 1 has the larger number; equal numbers count half."""
    is_one = targets == 1
    num_ones = int(is_one.sum())
    ranks = rankdata(numbers)
    above = float(ranks[is_one].sum()) - num_ones * (num_ones + 1) / 2
    return float(above) / (num_ones * (len(targets) - num_ones))
