"""Converts columns of a flat log, whatever their types in a file, to five kinds, and finds values that do not fit.

int64    whole numbers; also a mix of whole numbers and bool
float32  numbers that the file stores with 32 bits
float64  other numbers
bool     true or false
string   text; also times, decimal ids of more than 18 digits, and lists, whose values are joined with LIST_SEPARATOR
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.features.field import LARGEST_NUMBER, Kind

ARROW_TYPES: dict[Kind, pa.DataType] = {
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
# Column with the position of a row in the log: file and row in one number, so that rows have an order.
ORDER = "easyrec_mm:order"
ROW_BITS = 40

LIST_SEPARATOR = "|"
# Words that mean a missing number in a text; an empty value is missing in every column of a text file.
NULL_WORDS = ("NULL", "null", "NaN", "nan", "None", "NA", "N/A", r"\N")
WHOLE = r"[+-]?[0-9]{1,18}"
NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?"
BOOL = "(?i:true|false)"
# Whole numbers from here on are kept as text, because the trainer reads at most 18 digits.
MAX_WHOLE = 10**18
# The first whole number that int64 does not hold.
MAX_INT64 = 2**63

Mask = NDArray[np.bool_]


class Typed(NamedTuple):
    """A column in its kind `[N]`, null for missing or invalid values; mask of the invalid ones, None without any."""

    values: pa.Array
    is_bad: Mask | None


def kind_of(kind: pa.DataType) -> Kind | None:
    """Return the kind of a Parquet column; None if it contains only nulls.

    Raises:
      ValueError: if a column of that type cannot be a feature.
    """
    is_type = pa.types
    if is_type.is_null(kind):
        return None
    if is_type.is_dictionary(kind) or _is_list(kind):
        inner = kind_of(kind.value_type)
        return "string" if _is_list(kind) else inner
    if is_text(kind) or is_type.is_fixed_size_binary(kind) or is_type.is_uint64(kind):
        return "string"
    if is_type.is_temporal(kind) and not is_type.is_duration(kind) and not is_type.is_interval(kind):
        return "string"
    if is_type.is_integer(kind):
        return "int64"
    if is_type.is_floating(kind) or is_type.is_decimal(kind):
        return "float64" if is_type.is_decimal(kind) or is_type.is_float64(kind) else "float32"
    if is_type.is_boolean(kind):
        return "bool"
    raise ValueError(f"is {kind}, which cannot be a feature")


def join_kinds(first: Kind | None, second: Kind | None) -> Kind | None:
    """Return the kind that can represent the values of both kinds; None if both are unknown.

    Raises:
      ValueError: if one is text and the other is not.
    """
    if first == second or second is None:
        return first
    if first is None:
        return second
    kinds = {first, second}
    if "string" in kinds:
        raise ValueError(f"is {first} in one file and {second} in another")
    return "int64" if kinds == {"int64", "bool"} else "float64"


def to_kind(column: pa.Array, kind: Kind, strict: bool = False) -> Typed:
    """Convert a column from its type in a file to a kind.

    Args:
      column: of any type that kind_of accepts, `[N]`.
      kind: kind of the result.
      strict: whether NaN and NULL_WORDS are invalid, as in training; otherwise they are missing numbers, as in a log.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_list(column.type):
        texts = to_kind(column.flatten(), "string")
        joined = pc.binary_join(_like_list(column, texts.values), LIST_SEPARATOR)
        return Typed(joined, None)
    if kind == "string":
        return _texts(column)
    if is_text(column.type):
        texts = _texts(column)
        parsed = _parsed(texts.values, kind, strict)
        masks = [typed.is_bad for typed in (texts, parsed) if typed.is_bad is not None]
        return Typed(parsed.values, np.any(masks, axis=0) if masks else None)
    return _numbers(column, kind, strict)


def _texts(column: pa.Array) -> Typed:
    if pa.types.is_decimal(column.type):  # 13 and not 13.00, as a column of whole numbers has it
        texts = pc.replace_substring_regex(column.cast(pa.string()), r"^([^.]*\.[0-9]*?)0+$", r"\1")
        return Typed(pc.replace_substring_regex(texts, r"\.$", ""), None)
    try:
        # A file may hold bytes that are not UTF-8 in a column of text, too; only the cast from bytes looks at them.
        return Typed(column.cast(pa.large_binary() if is_text(column.type) else pa.string()).cast(pa.string()), None)
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
    is_bad = np.array([not _is_utf8(value) for value in values])
    good = [None if bad else value for value, bad in zip(values, is_bad, strict=True)]
    return Typed(pa.array(good, pa.binary()).cast(pa.string()), is_bad)


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _numbers(column: pa.Array, kind: Kind, strict: bool) -> Typed:
    """Convert numbers, bool or nulls to a kind of numbers."""
    if pa.types.is_decimal(column.type):
        return _decimals(column, kind)
    if not pa.types.is_floating(column.type):
        if kind == "bool" and pa.types.is_integer(column.type):
            return _without(column, pc.is_in(column, pa.array([0, 1], column.type)), kind)
        if pa.types.is_uint64(column.type) and kind == "int64":
            return as_signed(column)
        return Typed(column.cast(ARROW_TYPES[kind], safe=False), None)
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    is_nan = pc.is_nan(column)
    if not strict and pc.any(is_nan).as_py():
        column = pc.if_else(is_nan, None, column)
    numbers = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    if kind == "int64":
        is_bad = ~(np.abs(numbers) < (MAX_WHOLE if strict else MAX_INT64)) | (numbers != np.round(numbers))
    elif kind == "bool":
        is_bad = (numbers != 0) & (numbers != 1)
    else:
        is_bad = ~(np.abs(numbers) <= LARGEST_NUMBER)
    if not is_bad.any():
        return Typed(column.cast(ARROW_TYPES[kind], safe=False), None)
    good = pc.if_else(pa.array(is_bad), None, column)
    return Typed(good.cast(ARROW_TYPES[kind], safe=False), is_bad)


def _decimals(column: pa.Array, kind: Kind) -> Typed:
    """Convert decimals; whole numbers are exact."""
    if kind in ("float32", "float64"):
        return _numbers(column.cast(pa.float64()), kind, strict=True)
    whole = pc.floor(column)
    fits = pc.equal(whole, column)
    if kind == "bool":
        return _without(column, pc.and_(fits, pc.is_in(whole.cast(pa.float64()), pa.array([0.0, 1.0]))), kind)
    limit = pa.scalar(Decimal(MAX_INT64))
    fits = pc.and_(fits, pc.and_(pc.less(whole, limit), pc.greater(whole, pc.negate(limit))))
    return _without(whole, fits, kind)


def _without(column: pa.Array, fits: pa.Array, kind: Kind) -> Typed:
    """Convert the numbers that fit a kind; the others are invalid."""
    fits = pc.or_(pc.fill_null(fits, True), column.is_null())
    is_bad = ~fits.to_numpy(zero_copy_only=False)
    good = pc.if_else(fits, column, None)
    if kind == "bool":
        good = pc.not_equal(good.cast(pa.float64()), 0.0)
    return Typed(good.cast(ARROW_TYPES[kind], safe=False), is_bad if is_bad.any() else None)


def as_signed(column: pa.Array) -> Typed:
    """Convert whole numbers of 64 bits without a sign to int64; those that do not fit are invalid."""
    numbers = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    is_bad = numbers > np.iinfo(np.int64).max
    good = pc.if_else(pa.array(is_bad), None, column) if is_bad.any() else column
    return Typed(good.cast(pa.int64()), is_bad if is_bad.any() else None)


def _parsed(texts: pa.Array, kind: Kind, strict: bool) -> Typed:
    """Parse texts as numbers or bool; "" is missing."""
    texts = pc.if_else(pc.equal(texts, ""), None, texts)
    if kind != "bool" and (kind != "int64" or not starts_with_zero(texts)):
        try:
            numbers = texts.cast(ARROW_TYPES[kind])
        except pa.ArrowInvalid:
            pass
        else:
            if pc.all(_is_in_range(numbers)).as_py() is not False:
                return Typed(numbers, None)
    return _parsed_one_by_one(texts, kind, strict)


def _is_in_range(numbers: pa.Array) -> pa.Array:
    """Return which whole numbers have at most 18 digits, or which floats fit into 32 bits; NaN does not fit."""
    if not pa.types.is_floating(numbers.type):
        return pc.and_(pc.less(numbers, MAX_WHOLE), pc.greater(numbers, -MAX_WHOLE))
    return pc.less_equal(pc.abs(numbers), LARGEST_NUMBER)


def _parsed_one_by_one(texts: pa.Array, kind: Kind, strict: bool) -> Typed:
    """Parse as `_parsed` does, but allow texts that are invalid, null words, or have spaces, "+" or leading zeros."""
    texts = pc.utf8_trim_whitespace(texts)
    if not strict:
        is_missing = pc.or_(pc.equal(texts, ""), pc.is_in(texts, pa.array(NULL_WORDS)))
        texts = pc.if_else(is_missing, None, texts)
    if kind == "int64" and not strict:
        texts = _plain_whole(texts)
    pattern = {"int64": WHOLE, "bool": f"{BOOL}|[01]"}.get(kind, NUMBER)
    fits = pc.fill_null(pc.match_substring_regex(texts, f"^(?:{pattern})$"), True)
    good = pc.if_else(fits, texts, None)
    if kind == "bool":
        is_true = pc.is_in(pc.utf8_lower(good), pa.array(["true", "1"]))
        values = pc.if_else(good.is_valid(), is_true, None)
    else:
        plain = pc.replace_substring_regex(good, r"^(\+|(-?)0+)([0-9])", r"\2\3")
        values = plain.cast(ARROW_TYPES[kind])
        in_range = pc.fill_null(_is_in_range(values), True)
        fits, values = pc.and_(fits, in_range), pc.if_else(in_range, values, None)
    is_bad = ~fits.to_numpy(zero_copy_only=False)
    return Typed(values, is_bad if is_bad.any() else None)


def _plain_whole(texts: pa.Array) -> pa.Array:
    """Return whole numbers that are written like floats in plain digits: 1.0 and 1e16, as pandas writes them."""
    texts = pc.replace_substring_regex(texts, r"^([+-]?[0-9]+)\.0*$", r"\1")
    has_exponent = pc.fill_null(pc.match_substring_regex(texts, f"^(?:{NUMBER})$"), False)
    has_exponent = pc.and_(has_exponent, pc.fill_null(pc.match_substring_regex(texts, "[eE]"), False))
    if not pc.any(has_exponent).as_py():
        return texts
    numbers = pc.replace_substring_regex(pc.if_else(has_exponent, texts, None), r"^\+", "").cast(pa.float64())
    is_whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), float(MAX_WHOLE)))
    digits = pc.if_else(is_whole, numbers, None).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(digits, texts)


def starts_with_zero(texts: pa.Array) -> bool:
    """Return whether a text longer than "0" starts with "0": 007, or 0x7, which Arrow parses as a number as well."""
    return bool(pc.any(pc.and_(pc.starts_with(texts, "0"), pc.greater(pc.binary_length(texts), 1))).as_py())


def _like_list(column: pa.Array, values: pa.Array) -> pa.Array:
    """Return a column of lists with the same lengths but other values; a null stays null."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    mask = column.is_null() if column.null_count else None
    filled = pc.fill_null(values, "")
    return pa.LargeListArray.from_arrays(pa.array(offsets), filled, mask=mask)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is text or bytes."""
    types = pa.types
    is_string = types.is_string(kind) or types.is_large_string(kind)
    return bool(is_string or types.is_binary(kind) or types.is_large_binary(kind))
