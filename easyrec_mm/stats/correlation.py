"""Correlations of fields with labels, in a sample of rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

# With fewer rows a correlation would be noise.
_MIN_ROWS = 30


class Correlation(NamedTuple):
    """The correlation of a field with a label.

    strength  of numbers: Pearson's r, -1 to 1; of other values: the share of the label's deviation that they explain,
              0 to 1, corrected for the number of different values (Kelley's epsilon, 1935)
    auc       of a number for a label of 0 and 1; else None
    """

    strength: float
    auc: float | None = None


def correlate(field: pd.Series, label: pd.Series, is_number: bool) -> Correlation | None:
    """Return the correlation in rows with both values; None for too few rows, or if one of the two is constant."""
    known = field.notna() & label.notna()
    values, wanted = field[known], label[known].to_numpy(np.float64)
    if len(values) < _MIN_ROWS or wanted.min() == wanted.max() or values.nunique() < 2:
        return None
    if not is_number:
        return Correlation(_epsilon(values, wanted))
    numbers = values.to_numpy(np.float64)
    is_binary = bool(np.isin(wanted, (0, 1)).all())
    return Correlation(float(np.corrcoef(numbers, wanted)[0, 1]), _auc(numbers, wanted) if is_binary else None)


def _epsilon(values: pd.Series, wanted: NDArray[Any]) -> float:
    """Return sqrt(1 - (SS_within / (n - k)) / (SS_total / (n - 1))), or 0 if undefined, for n rows of k values."""
    codes = pd.factorize(values)[0]
    number = np.bincount(codes)
    freedom = len(codes) - len(number)
    if freedom <= 0:
        return 0.0
    means = np.bincount(codes, wanted) / number
    within = float(np.square(wanted - means[codes]).sum())
    total = float(np.square(wanted - wanted.mean()).sum())
    return float(max(1 - within / freedom * (len(codes) - 1) / total, 0.0) ** 0.5)


def _auc(numbers: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the share of pairs of a 1 and a 0 in which the 1 has the larger number; equal numbers count half."""
    is_one = wanted == 1
    num_ones = int(is_one.sum())
    ranks = rankdata(numbers)
    above = float(ranks[is_one].sum()) - num_ones * (num_ones + 1) / 2
    return float(above) / (num_ones * (len(wanted) - num_ones))
