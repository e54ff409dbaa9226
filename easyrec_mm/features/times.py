"""Points in time: the functions of them that expressions have, as whole numbers and exact in every back end.

A time is a number of seconds since 1970-01-01 00:00 UTC, without leap seconds, as in Unix; before 1970 it is negative.
Dates are those of the Gregorian calendar, also before it was introduced, as in Python's datetime. All functions compute
with int64, on NumPy's arrays as on TensorFlow's tensors: TensorFlow multiplies floats by the reciprocal of a constant
instead of dividing by it, which changes the last digit, and may change the whole number below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

_HOUR, _DAY = 3600, 86400
# Days from 1 March of the year 0 to 1970-01-01; and days of 400 years, after which the calendar repeats.
_DAYS_BEFORE_1970, _DAYS_OF_ERA = 719_468, 146_097
# Larger numbers are not exact as float64; they count as this.
LARGEST_TIME = 2**53

# The texts that `from_text` reads: each part is limited, so that a text can match in one way only.
_LONG_MONTH = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTH = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DATE = f"[0-9]{{4}}-(?:{_LONG_MONTH}|{_SHORT_MONTH}|02-(?:0[1-9]|[12][0-9]))"
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])?"
TIME_PATTERN = rf"{_DATE}(?:[T ](?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{{1,9}})?)?{_ZONE})?"
# The text for a missing time, which is 0.
TIME_ZERO = "1970-01-01"
# Its parts: year, month, day; hour, minute, second; sign, hours and minutes of the offset from UTC.
TIME_PARTS = (
    r"^([0-9]{4})-([0-9]{2})-([0-9]{2})(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.[0-9]+)?)?"
    r"(?:Z|([+-])([0-9]{2}):?([0-9]{2}))?)?$"
)
_READ_PARTS = re.compile(TIME_PARTS)


def read_parts(text: str) -> tuple[int, ...]:
    """Return the parts that `seconds_of` takes, for a text that matches TIME_PATTERN.

    Raises:
      ValueError: if it does not match.
    """
    match = _READ_PARTS.match(text)
    if match is None:
        raise ValueError(f"'{text}' is not a time")
    parts = match.groups("0")
    return (*(int(part) for part in parts[:6]), -1 if parts[6] == "-" else 1, int(parts[7]), int(parts[8]))


def seconds_of(parts: Sequence[Any]) -> Any:
    """Return the times of dates, times of day, and offsets from UTC; 29 February of a year without one is 1 March.

    Args:
      parts: year, month, day; hour, minute, second; sign (1 or -1), hours and minutes of the offset.
    """
    year, month, day, hour, minute, second, sign, offset_hours, offset_minutes = parts
    # Years begin in March, so that the leap day is the last: Howard Hinnant, "chrono-Compatible Low-Level Date
    # Algorithms".
    year = year - (14 - month) // 12
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = 365 * year + year // 4 - year // 100 + year // 400 + day_of_year - _DAYS_BEFORE_1970
    offset = sign * (offset_hours * _HOUR + offset_minutes * 60)
    return days * _DAY + hour * _HOUR + minute * 60 + second - offset


def _hour(seconds: Any) -> Any:
    return seconds // _HOUR % 24


def _weekday(seconds: Any) -> Any:
    return (seconds // _DAY + 3) % 7  # 1970-01-01 was a Thursday


def _month(seconds: Any) -> Any:
    return (_month_from_march(seconds) + 2) % 12 + 1


def _monthday(seconds: Any) -> Any:
    return _day_of_year(seconds) - (153 * _month_from_march(seconds) + 2) // 5 + 1


def _month_from_march(seconds: Any) -> Any:
    return (5 * _day_of_year(seconds) + 2) // 153


def _day_of_year(seconds: Any) -> Any:
    """Return the number of days since 1 March, from 0."""
    day = (seconds // _DAY + _DAYS_BEFORE_1970) % _DAYS_OF_ERA
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    return day - (365 * year + year // 4 - year // 100)


# Function of an expression -> function of the local time, int64 -> int64.
TIME_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "hour": _hour,
    "weekday": _weekday,
    "monthday": _monthday,
    "month": _month,
}
