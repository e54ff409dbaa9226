"""Makes features of the time of the impression: hour and weekday, which recur, as the time itself does not."""

from __future__ import annotations

import keyword
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.features.times import TIME_PATTERN, read_parts, seconds_of
from easyrec_mm.grouping.column_stats import ColumnStats
from easyrec_mm.grouping.plans import FeaturePlan
from easyrec_mm.grouping.time_columns import EPOCH

_DAY = 86400
# Part of the time -> its number of values, and the days that a log must span so that each of them recurs.
_PARTS = {"hour": (24, 2), "weekday": (7, 14)}
_EMBEDDING_DIM = 8


def time_features(name: str, column: ColumnStats, values: pa.Array) -> list[FeaturePlan]:
    """Return the features of a column of times; none if times are missing, or have a form that expressions do not read.

    Args:
      name: its name.
      column: its statistics.
      values: its values in a sample of the rows, without missing ones.
    """
    read = _reader(name, column, values)
    if column.num_missing or not read or keyword.iskeyword(name):
        return []
    seconds, zone = read
    span = (_seconds(column.greatest, seconds) - _seconds(column.least, seconds)) / _DAY
    return [
        FeaturePlan(
            f"{name}_{part}",
            "ExprFeature",
            {
                "feature_name": f"{name}_{part}",
                "expression": f"{part}({seconds})",
                "boundaries": list(range(1, number)),
                "embedding_dim": _EMBEDDING_DIM,
            },
            f"the {part} of the time, {zone}",
            column=name,
        )
        for part, (number, days) in _PARTS.items()
        if span >= days
    ]


def _reader(name: str, column: ColumnStats, values: pa.Array) -> tuple[str, str] | None:
    """Return the expression of the times in seconds, and the zone of their hours; None if no expression reads them."""
    if column.kind == "string":
        limits = pa.array([column.least, column.greatest], pa.string())
        is_time = pc.match_substring_regex(
            pa.concat_arrays([limits, values.cast(pa.string())]), f"^(?:{TIME_PATTERN})$"
        )
        return (f"from_text({name})", "as it is written; with an offset, in UTC") if pc.all(is_time).as_py() else None
    if column.kind != "int64":
        return None
    low, high = EPOCH
    in_utc = f"in UTC: for local time, give the hours ahead of UTC as in hour({name}, 8)"
    for unit, seconds in ((1, name), (1000, f"from_millis({name})")):
        if low * unit <= column.least and column.greatest < high * unit:
            return seconds, in_utc.replace(f"hour({name}", f"hour({seconds}")
    return None


def _seconds(value: Any, expression: str) -> float:
    if isinstance(value, str):
        return float(seconds_of(read_parts(value)))
    return float(value) / (1000 if expression.startswith("from_millis") else 1)
