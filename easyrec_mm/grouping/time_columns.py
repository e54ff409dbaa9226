"""Finds columns of points in time, by their values: dates and times in text, seconds since 1970, dates as numbers."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.grouping.column_stats import ColumnStats
from easyrec_mm.grouping.times import DATE_ORDERS, times_of

TIME = "is a time: later rows have values that do not occur in training"
_TIME_NAME = re.compile(r"(\w+_)?(time|timestamp|ts|date|datetime|dt|day|month)|(\w+_)at")
# Share of the values that must be times: a log may have a few others, such as "unknown".
_SHARE = 0.99
# Numbers of distinct texts that are examined: first a few, of which most must be times, and then more.
_FEW_TEXTS, _NUM_TEXTS = 20, 1000
# With the name of a time, whole numbers from here on are not durations.
_MIN_TIME = 10_000_000
# Seconds since 1970 for the years 2010 to 2033, above ids that are counted from 1,000,000,000 on; milli-, micro- and
# nanoseconds are tried, too.
EPOCH, _UNITS = (1_262_304_000, 2e9), (1.0, 1e3, 1e6, 1e9)
# Numbers that stand for a time that is not known.
_NO_TIMES = (0.0, -1.0)
# 20260131, followed by nothing, or by the hour, minute and second; the years, and the least number of such dates.
_DIGITS_AFTER_DATE, _YEARS, _MIN_DATES = (0, 2, 4, 6), (1900, 2100), 5
# Dates with the name of a month: 31-Jan-2026, Jan 31, 2026, Sat, 31 Jan 2026 10:00:00 GMT.
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_WITH_MONTH = (
    r"^(?i:(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? +)?"
    rf"(?:[0-9]{{1,2}}[ /-]+{_MONTH}|{_MONTH}[ /-]+[0-9]{{1,2}})[ ,/-]+[0-9]{{4}}(?:[ ,T]+[0-9]{{1,2}}:[0-9]{{2}}.*)?)$"
)


def is_time(name: str, column: ColumnStats, values: pa.Array, is_id: bool) -> bool:
    """Return whether a column holds points in time.

    Args:
      name: its name, which only adds to the evidence.
      column: its statistics.
      values: its values in a sample of the rows, without missing ones.
      is_id: whether its name is that of an id, which may have the numbers of seconds since 1970.
    """
    if column.least is None or column.kind == "bool":
        return False
    has_name = bool(_TIME_NAME.fullmatch(name.lower()))
    if column.kind == "string":
        starts_with_year = all(re.match("[0-9]{4}", str(limit)) for limit in (column.least, column.greatest))
        if has_name and starts_with_year:
            return True
        are_whole = pc.all(pc.match_substring_regex(values, "^[0-9]{10,19}$")).as_py()
        return _is_seconds(values, is_id) if are_whole else are_times(values)
    if has_name and float(column.least) >= _MIN_TIME:
        return True
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    numbers = numbers[~np.isin(numbers, _NO_TIMES)]
    if not len(numbers):
        return False
    if has_name and _are_dates(numbers * 100 + 1, 1):  # 202601
        return True
    return _are_dates(numbers) or (not is_id and _are_seconds(numbers))


def _is_seconds(digits: pa.Array, is_id: bool) -> bool:
    """Return whether texts of whole numbers, such as those of more than 18 digits, are seconds since 1970."""
    return not is_id and _are_seconds(digits.cast(pa.float64()).to_numpy(zero_copy_only=False))


def are_times(texts: pa.Array) -> bool:
    """Return whether nearly all texts are dates, with or without a time of day; nulls do not count."""
    texts = texts.drop_null().unique().slice(0, _NUM_TEXTS)
    if not len(texts) or _share_of_times(texts.slice(0, _FEW_TEXTS)) < 0.5:
        return False
    return _share_of_times(texts) >= _SHARE


def _share_of_times(texts: pa.Array) -> float:
    """Return the greatest share of times, in any order of day and month."""
    has_month = pc.match_substring_regex(texts, _WITH_MONTH)
    are_times = [pc.or_(has_month, times_of(texts, order).is_valid()) for order in DATE_ORDERS]
    return max(float(pc.mean(is_time.cast(pa.float64())).as_py()) for is_time in are_times)


def _are_seconds(numbers: NDArray[np.float64]) -> bool:
    low, high = EPOCH
    return any(np.mean((numbers >= low * unit) & (numbers < high * unit)) >= _SHARE for unit in _UNITS)


def _are_dates(numbers: NDArray[np.float64], min_dates: int = _MIN_DATES) -> bool:
    """Return whether numbers are like 20260131 or 20260131235959."""
    if np.any(numbers != np.floor(numbers)):
        return False
    for num_digits in _DIGITS_AFTER_DATE:
        days = numbers // 10**num_digits
        year, month, day = days // 10_000, days // 100 % 100, days % 100
        is_date = (year >= _YEARS[0]) & (year <= _YEARS[1]) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
        if np.mean(is_date) >= _SHARE and len(np.unique(days)) >= min_dates:
            return True
    return False
