"""What the text of a value must look like, as regular expressions that mean the same to Python's re and to RE2.

Input formats check every value with them before it is read, and the config's defaults are checked once. A feature type
says what text it takes by the functions of this module.
"""

from __future__ import annotations

import re

from easyrec_mm.features.field import Dtype

# RE2 repeats a part at most 1000 times, and a part that holds "{1,2}" half as often.
_MOST_REPEATS = 400
# A FLOAT field is checked as a number, too. Within a string the exponent is limited instead, so that none is too large.
_EXPONENT = "(?:[eE][+-]?[0-9]{1,2})?"
_LIST_EXPONENT = "(?:[eE](?:-[0-9]{1,2}|[+]?1?[0-9]))?"


def integer(separators: str = "") -> str:
    """A whole number within a text that these characters split."""
    return _signed("[0-9]{1,18}", separators)


def number(separators: str = "", exponent: str = _LIST_EXPONENT) -> str:
    """A number within a text that these characters split."""
    digits = "[0-9]+" if "." in separators else r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
    return _signed(digits + ("" if "e" in separators.lower() else exponent), separators)


def word(separators: str) -> str:
    """Any text without these characters. Input formats match many values at once, between line ends."""
    return rf"[^{''.join(re.escape(separator) for separator in separators)}\n]*"


def vector(separators: str, separator: str, dim: int) -> str:
    """`dim` numbers between `separator`, within a text that the characters of `separators` split."""
    whole, rest = divmod(dim - 1, _MOST_REPEATS)
    repeats = [_MOST_REPEATS] * whole + [rest] * (rest > 0)
    one = number(separators)
    return one + "".join(f"(?:{literal(separator)}{one}){{{count}}}" for count in repeats)


def literal(separator: str) -> str:
    """The separator itself."""
    return re.escape(separator)


def list_of(element: str, separator: str) -> str:
    """Any number of elements, of which each may be empty."""
    between = literal(separator)
    return f"(?:(?:{element})?{between})*(?:{element})?"


def _signed(digits: str, separators: str) -> str:
    """Spaces, a sign, digits, spaces; none of the characters of `separators`, which split before a number is read."""
    spaces = "".join(code for space, code in ((" ", " "), ("\t", r"\t")) if space not in separators)
    signs = "".join(sign for sign in "+-" if sign not in separators)
    around = f"[{spaces}]*" if spaces else ""
    return around + (f"[{signs}]?" if signs else "") + digits + around


INTEGER_PATTERN, NUMBER_PATTERN = integer(), number(exponent=_EXPONENT)
# A string field takes any text.
VALUE_PATTERNS: dict[Dtype, str] = {
    "int64": INTEGER_PATTERN,
    "bool": r"(?i:true|false)|[01]",
    "float32": NUMBER_PATTERN,
}
