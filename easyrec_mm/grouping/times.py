"""Points in time that a log writes as text, as numbers that can be compared."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# The order of year, month and day in a text.
DateOrder = Literal["ymd", "dmy", "mdy"]

# 2026-1-31, 31/1/2026, 31.01.2026 or 20260131, with or without a time of day and an offset from UTC.
_CLOCK = r"(?:[T ]+(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{1,2})(?::(?P<second>[0-9]{1,2})(?P<fraction>\.[0-9]{1,9})?)?)?"
_OFFSET = r"\s*(?:Z|UTC|(?P<sign>[+-])(?P<offset_hours>[0-9]{2}):?(?P<offset_minutes>[0-9]{2}))?"
_SEPARATED = rf"^\s*(?P<a>[0-9]{{1,4}})[-/.](?P<b>[0-9]{{1,2}})[-/.](?P<c>[0-9]{{1,4}}){_CLOCK}{_OFFSET}\s*$"
_COMPACT = (
    r"^\s*(?P<a>[0-9]{4})(?P<b>[0-9]{2})(?P<c>[0-9]{2})"
    r"(?:T?(?P<hour>[0-9]{2})(?P<minute>[0-9]{2})?(?P<second>[0-9]{2})?)?\s*$"
)
DATE_ORDERS: tuple[DateOrder, ...] = ("ymd", "dmy", "mdy")
_MICROSECONDS = 1_000_000


def date_order(texts: pa.Array) -> DateOrder:
    """Return the only order of day and month in which all texts are times; nulls and "" do not count.

    Raises:
      ValueError: if there is none, or more than one; the text names an example.
    """
    texts = texts.filter(pc.not_equal(texts, "")).unique()
    bad = {order: texts.filter(times_of(texts, order).is_null()) for order in DATE_ORDERS}
    possible = [order for order in DATE_ORDERS if not len(bad[order])]
    if len(possible) > 1:
        raise ValueError(f"'{texts[0]}' may have the day or the month first")
    if not possible:
        raise ValueError(f"'{min(bad.values(), key=len)[0]}' is not a date or time like the others")
    return possible[0]


def times_of(texts: pa.Array, order: DateOrder) -> pa.Array:
    """Return microseconds since 1970 (UTC) of texts in this order, int64 `[N]`; null where a text is not a time."""
    separated, compact = pc.extract_regex(texts, _SEPARATED), pc.extract_regex(texts, _COMPACT)
    is_compact = compact.is_valid().to_numpy(zero_copy_only=False)

    def number(part: str, column: pa.Array = separated) -> NDArray[np.int64]:
        """Return the number of a part; 0 where it is left out."""
        digits = column.field(part)
        numbers: NDArray[np.int64] = (
            pc.fill_null(pc.if_else(pc.equal(digits, ""), "0", digits), "0").cast(pa.int64()).to_numpy()
        )
        return numbers

    def either(part: str, of_compact: str) -> NDArray[np.int64]:
        return np.where(is_compact, number(of_compact, compact), number(part))

    # Without separators, the year is always first.
    year, month, day = (either("abc"[order.index(part)], "abc"["ymd".index(part)]) for part in "ymd")
    hour, minute, second = (either(part, part) for part in ("hour", "minute", "second"))
    is_valid = separated.is_valid().to_numpy(zero_copy_only=False) | is_compact
    is_valid &= (year >= 1000) & (month >= 1) & (month <= 12) & (day >= 1) & (hour < 24) & (minute < 60) & (second < 61)
    months = np.where(is_valid, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + np.where(is_valid, day - 1, 0)
    is_valid &= days < (months + 1).astype("datetime64[D]")
    fraction = pc.utf8_ltrim(pc.fill_null(separated.field("fraction"), ""), ".")
    microseconds = pc.utf8_slice_codeunits(pc.utf8_rpad(fraction, 6, "0"), 0, 6).cast(pa.int64()).to_numpy()
    offset = number("offset_hours") * 3600 + number("offset_minutes") * 60
    is_west = pc.fill_null(pc.equal(separated.field("sign"), "-"), False).to_numpy(zero_copy_only=False)
    seconds = days.astype(np.int64) * 86400 + hour * 3600 + minute * 60 + second + np.where(is_west, offset, -offset)
    return pa.array(seconds * _MICROSECONDS + microseconds, pa.int64(), mask=~is_valid)
