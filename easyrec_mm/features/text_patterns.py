"""Patterns of the texts of values, as regular expressions that have the same meaning in Python's re and in RE2.

Input formats check every value with these patterns before it is read; the config's defaults are checked once. A feature
type describes the texts that it accepts with the functions of this module.

A text can match a pattern in one way only: no two neighbouring parts that repeat accept the same character. Therefore
Python's re, which tries all ways, takes a time proportional to the length of the text, as RE2 does for any pattern.
"""

from __future__ import annotations

import re

from easyrec_mm.features.field import Dtype

# RE2 allows at most 1000 repetitions of a part, and half as many of a part that contains "{1,2}".
_MOST_REPEATS = 400
# RE2 compiles no pattern of many more numbers. The ranges in feature.proto are the same; a config out of them is told
# of with its other problems, for which the pattern is built.
_MOST_NUMBERS = 8192
# FLOAT fields are also checked as numbers. Within a string, the digits before the point and the exponent are limited
# instead, so that float32 is large enough.
_EXPONENT = "(?:[eE][+-]?[0-9]{1,2})?"
_MOST_DIGITS = 20


def integer(separators: str = "") -> str:
    """Return the pattern of a whole number within a text that the characters of `separators` split."""
    return _signed(f"{_digit(separators)}{{1,18}}", separators)


def number(separators: str = "") -> str:
    """Return the pattern of a number within a text that the characters of `separators` split."""
    return _number(f"{{1,{_MOST_DIGITS}}}", _small_exponent(separators), separators)


def word(separators: str) -> str:
    """Return the pattern of any text without these characters and without line ends.

    Input formats match many values at once, with line ends between them.
    """
    return rf"[^{''.join(re.escape(separator) for separator in separators)}\n]*"


def vector(separators: str, separator: str, dim: int) -> str:
    """Return the pattern of `dim` numbers between `separator`, in a text that the characters of `separators` split.

    The numbers may have any number of digits, which a pattern within a repeated pattern cannot limit: see `few_digits`.
    """
    num_full, num_left = divmod(min(dim, _MOST_NUMBERS) - 1, _MOST_REPEATS)
    repeats = [_MOST_REPEATS] * num_full + [num_left] * (num_left > 0)
    number_pattern = _number("+", _small_exponent(separators), separators)
    return number_pattern + "".join(f"(?:{literal(separator)}{number_pattern}){{{count}}}" for count in repeats)


def few_digits(separators: str) -> str:
    """Return the pattern of a text of numbers, none of which has too many digits before the point."""
    number_pattern = f"[0-9]{{0,{_MOST_DIGITS}}}" + ("" if "." in separators else r"(?:\.[0-9]*)?")
    return f"(?:{number_pattern}[^0-9{'' if '.' in separators else '.'}])*{number_pattern}"


def literal(separator: str) -> str:
    """Return the pattern of the separator itself."""
    return re.escape(separator)


def list_of(element: str, separator: str) -> str:
    """Return the pattern of any number of elements, each of which may be empty."""
    between = literal(separator)
    return f"(?:(?:{element})?{between})*(?:{element})?"


def _number(repeats: str, exponent: str, separators: str) -> str:
    """Return the pattern of a number; `repeats` says how many digits it has before the point."""
    digit = _digit(separators)
    fraction = "" if "." in separators else rf"(?:\.{digit}*)?"
    without_whole = "" if "." in separators else rf"|\.{digit}+"
    return _signed(f"(?:{digit}{repeats}{fraction}{without_whole}){exponent}", separators)


def _digit(separators: str) -> str:
    """Return the pattern of a digit that is not among `separators`."""
    digits = "".join(digit for digit in "0123456789" if digit not in separators)
    return f"[{digits}]" if digits != "0123456789" else "[0-9]"


def _small_exponent(separators: str) -> str:
    if "e" in separators.lower():
        return ""
    digit, one = _digit(separators), "" if "1" in separators else "1?"
    negative = "" if "-" in separators else f"-{digit}{{1,2}}|"
    plus = "" if "+" in separators else "[+]?"
    return f"(?:[eE](?:{negative}{plus}{one}{digit}))?"


def _signed(digits: str, separators: str) -> str:
    """Return the pattern of spaces, sign, digits, spaces, without `separators`, which split the text first."""
    spaces = "".join(code for space, code in ((" ", " "), ("\t", r"\t")) if space not in separators)
    signs = "".join(sign for sign in "+-" if sign not in separators)
    around = f"[{spaces}]*" if spaces else ""
    return around + (f"[{signs}]?" if signs else "") + digits + around


INTEGER_PATTERN, NUMBER_PATTERN = integer(), _number("+", _EXPONENT, "")
# A string field accepts any text.
VALUE_PATTERNS: dict[Dtype, str] = {
    "int64": INTEGER_PATTERN,
    "bool": r"(?i:true|false)|[01]",
    "float32": NUMBER_PATTERN,
}
