"""Finds columns that have a different value in nearly every row: numbers of rows, impressions or requests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easyrec_mm.grouping.column_stats import ColumnStats

# Minimum of rows for which one value per row is not a coincidence, and minimum of distinct values per row, whose
# estimates have an error of about 1 %.
_MIN_ROWS, _DISTINCT = 100, 0.9
# Random numbers are this distinct only if their range is five times their count; numbers in a smaller range count rows.
_MAX_RANGE = 3
# Maximum distance of the values' distribution from an even one (Kolmogorov and Smirnov): counters and random ids fill
# their range evenly, measurements do not. By chance, 100 values from an even distribution rarely exceed it.
_EVEN = 0.15


def has_value_per_row(column: ColumnStats) -> bool:
    """Return whether nearly every row has a value of its own."""
    is_distinct = column.num_distinct >= _DISTINCT * column.num_values
    return column.kind != "bool" and column.num_values >= _MIN_ROWS and is_distinct


def why_row_number(column: ColumnStats, values: pa.Array, is_id: bool) -> str:
    """Return why a column numbers the rows; "" if it does not.

    Measurements may differ in all rows, too; whole numbers are row numbers if their name is that of an id, or if they
    fill a range completely or evenly.

    Args:
      column: its statistics.
      values: its values in a sample of the rows, without missing ones.
      is_id: whether its name is that of an id.
    """
    if not has_value_per_row(column):
        return ""
    distinct = min(column.num_distinct, column.num_values)
    about = "" if column.counts is not None else "about "
    numbers_rows = (
        f"has a different value in every row ({about}{distinct:,} in {column.num_values:,}), like a row number"
    )
    if column.kind == "string":
        return numbers_rows
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if np.any(numbers != np.floor(numbers)):
        return ""
    fills_range = column.greatest - column.least < _MAX_RANGE * column.num_values
    return numbers_rows if is_id or fills_range or _are_even(numbers) else ""


def _are_even(numbers: NDArray[np.float64]) -> bool:
    ordered = np.sort(numbers)
    place = (ordered - ordered[0]) / (ordered[-1] - ordered[0])
    return bool(np.max(np.abs(place - np.arange(len(ordered)) / (len(ordered) - 1))) < _EVEN)
