"""What the text of a value must look like, as regular expressions that mean the same to Python's re and to RE2.

Input formats check every value with them before it is read, and the config's defaults are checked once.
"""

from __future__ import annotations

import re

from easyrec_mm.schema import Dtype, Feature, Schema

# RE2 repeats a part at most 1000 times, and a part that holds "{1,2}" half as often.
_MOST_REPEATS = 400
# A FLOAT field is checked as a number, too. Within a string the exponent is limited instead, so that none is too large.
_EXPONENT = "(?:[eE][+-]?[0-9]{1,2})?"
_LIST_EXPONENT = "(?:[eE](?:-[0-9]{1,2}|[+]?1?[0-9]))?"


def _integer(separators: str = "") -> str:
    return _signed("[0-9]{1,18}", separators)


def _number(separators: str = "", exponent: str = _EXPONENT) -> str:
    digits = "[0-9]+" if "." in separators else r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
    return _signed(digits + ("" if "e" in separators.lower() else exponent), separators)


def _signed(digits: str, separators: str) -> str:
    """Spaces, a sign, digits, spaces; none of the characters of `separators`, which split before a number is read."""
    spaces = "".join(code for space, code in ((" ", " "), ("\t", r"\t")) if space not in separators)
    signs = "".join(sign for sign in "+-" if sign not in separators)
    around = f"[{spaces}]*" if spaces else ""
    return around + (f"[{signs}]?" if signs else "") + digits + around


INTEGER_PATTERN, NUMBER_PATTERN = _integer(), _number()
# A string field takes any text.
VALUE_PATTERNS: dict[Dtype, str] = {
    "int64": INTEGER_PATTERN,
    "bool": r"(?i:true|false)|[01]",
    "float32": NUMBER_PATTERN,
}


def text_patterns(schema: Schema) -> dict[str, list[str]]:
    """Field name -> the patterns that its text, if it is not empty, must match in full."""
    patterns = {field.name: [VALUE_PATTERNS[field.dtype]] for field in schema.fields if field.dtype in VALUE_PATTERNS}
    string_fields = {field.name for field in schema.fields if field.dtype == "string"}
    for feature in schema.features:
        for name, pattern in _feature_patterns(feature):
            if name in string_fields:
                patterns.setdefault(name, []).append(pattern)
    return patterns


def _feature_patterns(feature: Feature) -> list[tuple[str, str]]:
    """(field, pattern) of what a feature reads from string fields."""
    first = feature.inputs[0]
    if feature.store:
        return []
    separators = feature.separator + feature.kv_separator
    separator, key_separator = re.escape(feature.separator), re.escape(feature.kv_separator)
    number = _number(separators, _LIST_EXPONENT)
    if feature.kind == "sequence":
        return _sequence_patterns(feature)
    if feature.expression:
        return [(name, number) for name in feature.inputs]
    if feature.kind == "raw":
        return [(first, _vector(number, feature.separator, feature.raw_dim))]
    if feature.kind == "id" and feature.encoding == "identity":
        return [(first, INTEGER_PATTERN)]
    if feature.kind != "tag":
        return []
    found = []
    # Input formats match many values at once, between line ends.
    text = rf"[^{separator}{key_separator}\n]*"
    tag = _integer(separators) if feature.encoding == "identity" else text
    if feature.max_selected:
        return [(feature.inputs[1], _list_of(f"{text}{key_separator}{tag}", separator))]
    if feature.kv_separator:
        found.append((first, _list_of(f"{tag}{key_separator}{number}", separator)))
    elif feature.encoding == "identity":
        found.append((first, _list_of(tag, separator)))
    if feature.weight_input:
        found.append((feature.weight_input, _list_of(number, separator)))
    return found


def _sequence_patterns(feature: Feature) -> list[tuple[str, str]]:
    separators = feature.separator + feature.number_separator
    if feature.elements == "raw":
        element = _vector(_number(separators, _LIST_EXPONENT), feature.number_separator, feature.raw_dim)
    elif feature.encoding == "identity":
        element = _integer(separators)
    else:
        return []
    return [(feature.inputs[0], _list_of(element, re.escape(feature.separator)))]


def _vector(number: str, separator: str, dim: int) -> str:
    whole, rest = divmod(dim - 1, _MOST_REPEATS)
    repeats = [_MOST_REPEATS] * whole + [rest] * (rest > 0)
    return number + "".join(f"(?:{re.escape(separator)}{number}){{{count}}}" for count in repeats)


def _list_of(element: str, separator: str) -> str:
    return f"(?:(?:{element})?{separator})*(?:{element})?"
