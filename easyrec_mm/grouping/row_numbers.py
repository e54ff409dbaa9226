"""Finds columns that have a different value in every row: points in time, and numbers of rows or impressions."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.formats.columns import ORDER
from easyrec_mm.grouping.column_stats import ColumnStats

TIME = "is a time: later rows have values that do not occur in training"
_TIME_NAME = re.compile(r"(\w+_)?(time|timestamp|ts|date|datetime|dt|day)|(\w+_)at")
# Whole numbers from here on are not durations, but dates such as 20260131, or seconds since 1970.
_MIN_TIME = 10_000_000
# Minimum of rows for which one value per row is not a coincidence, and minimum of distinct values per row, whose
# estimates have an error of about 1 %.
_MIN_ROWS, _DISTINCT = 100, 0.9
# Random numbers are this distinct only if their range is five times their count; numbers in a smaller range count rows.
_MAX_RANGE = 3
# Correlation of rank and row number from which on numbers are considered to grow with the rows.
_GROWING = 0.999
# Seconds since 1970 for the years 2001 to 2033; milli-, micro- and nanoseconds are tried, too.
_EPOCH = (1_000_000_000, 2_000_000_000)
_DATE = r"^[0-9]{4}[-/.]?[0-9]{2}[-/.]?[0-9]{2}([T ][0-9:.,+Z-]*)?$"


def why_row_number(column: ColumnStats, sample: pa.Table, name: str, is_id: bool) -> str:
    """Return why a column numbers the rows; "" if it does not.

    Measurements may differ in all rows, too; whole numbers are row numbers if their name is that of an id, if they fill
    a range, or if they grow with the rows.

    Args:
      column: its statistics.
      sample: rows of the log with this column and ORDER, in random order.
      name: the column.
      is_id: whether its name is that of an id.
    """
    if column.kind == "bool" or column.num_values < _MIN_ROWS or column.num_distinct < _DISTINCT * column.num_values:
        return ""
    table = sample.select([name, ORDER]).filter(pc.is_valid(sample[name]))
    distinct = min(column.num_distinct, column.num_values)
    about = "" if column.counts is not None else "about "
    numbers_rows = (
        f"has a different value in every row ({about}{distinct:,} in {column.num_values:,}), like a row number"
    )
    if column.kind == "string":
        return TIME if pc.all(pc.match_substring_regex(table[name], _DATE)).as_py() else numbers_rows
    numbers = table[name].cast(pa.float64(), safe=False).to_numpy()
    if np.any(numbers != np.floor(numbers)):
        return ""
    if is_id or column.greatest - column.least < _MAX_RANGE * column.num_values:
        return numbers_rows
    if _are_times(float(column.least), float(column.greatest)):
        return TIME
    return numbers_rows if _grows(numbers, table[ORDER].to_numpy()) else ""


def _are_times(least: float, greatest: float) -> bool:
    return any(_EPOCH[0] * unit <= least and greatest <= _EPOCH[1] * unit for unit in (1, 1e3, 1e6, 1e9))


def _grows(numbers: NDArray[np.float64], order: NDArray[np.int64]) -> bool:
    rank = np.argsort(np.argsort(numbers[np.argsort(order)], kind="stable"))
    return abs(float(np.corrcoef(rank, np.arange(len(rank)))[0, 1])) >= _GROWING


def is_time(name: str, column: ColumnStats) -> bool:
    """Return whether a column looks like a point in time: by its name, and by dates or large numbers in it."""
    if not _TIME_NAME.fullmatch(name.lower()) or column.least is None:
        return False
    if column.kind == "string":
        return all(re.match("[0-9]{4}", str(limit)) for limit in (column.least, column.greatest))
    return column.kind != "bool" and float(column.least) >= _MIN_TIME
