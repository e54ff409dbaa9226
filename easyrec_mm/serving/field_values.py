"""Checks the values that a request gives for a field, and converts them to a column."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.errors import UserError
from easyrec_mm.features.field import Dtype, Field
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.schema import Schema

INT64_LIMIT = 2**63
# Types of JSON values that a field may have; True is not a number, although Python treats it as one.
TYPES: dict[Dtype, frozenset[type]] = {
    "string": frozenset({str}),
    "int64": frozenset({int}),
    "bool": frozenset({bool, int}),
    "float32": frozenset({int, float}),
}
# Python's re keeps hundreds of bytes for each value of a list, so that longer texts are matched by RE2.
_LONG_TEXT = 4096
_MESSAGE_CHARACTERS = 500
# The longest text. Python holds up all other threads while it splits a text.
MAX_CHARACTERS = 1 << 20
# What joins a list in the field of a feature that reads no lists, as in the data.
_LIST_SEPARATOR = "|"


class RequestError(UserError):
    """An invalid request; the message names the instance and the field.

    It is cut off if it repeats a long part of the request: gRPC would fail to send it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= _MESSAGE_CHARACTERS else f"{message[:_MESSAGE_CHARACTERS]}...")


class FieldValues:
    """Reads the values of one field.

    A list stands for a text, as in tables (formats/typed_groups.py): its values are joined by the separators of the
    feature that reads the field.

    Args:
      field: the field.
      patterns: patterns that its texts must match.
      separators: separators between the values of a text, and within these.
      largest: largest magnitude of its numbers, and the allowed numbers in words.
    """

    def __init__(
        self, field: Field, patterns: Sequence[str], separators: Sequence[str], largest: tuple[float, str]
    ) -> None:
        self.field = field
        self._patterns = [_Pattern(pattern) for pattern in patterns]
        self._separators = separators
        self._largest, self._allowed_numbers = largest

    def read(self, values: Sequence[Any], place: str) -> Values:
        """Return the column of values, in which the default replaces missing or empty ones.

        Args:
          values: of one candidate each; None for a missing value.
          place: "instance", or "shared" for the single value of all candidates.

        Raises:
          RequestError: if a value is missing and has no default, or is invalid.
        """
        allowed = TYPES[self.field.dtype]
        if not allowed.issuperset(map(type, values)):
            values = [self._value(value, place, i) for i, value in enumerate(values)]
        if self.field.dtype == "string":
            return self._texts(values, place)
        return self._numbers(values, place) if self.field.dtype == "float32" else self._integers(values, place)

    def require_short(self, values: Values, place: str) -> None:
        """Raise RequestError if a text is longer than MAX_CHARACTERS."""
        if not isinstance(values, np.ndarray) and max(map(len, values)) > MAX_CHARACTERS:
            i = next(i for i, text in enumerate(values) if len(text) > MAX_CHARACTERS)
            raise self._error(place, i, f"has {len(values[i])} characters; at most {MAX_CHARACTERS} are read")

    def _value(self, value: Any, place: str, index: int) -> Any:
        """Return a value of an allowed type."""
        field = self.field
        if value is None:
            if field.optional:
                return field.default_value
            advice = f"give a {field.dtype}; only a field with a default_val may be missing"
            raise self._error(place, index, f"is missing; {advice}")
        if isinstance(value, list) and field.dtype == "string":
            try:
                return joined(value, self._separators)
            except ValueError as error:
                raise self._error(place, index, f"{shown(value)}: {error}") from error
        if type(value) not in TYPES[field.dtype]:
            raise self._error(place, index, f"is {shown(value)}, not a {field.dtype}")
        return value

    def _texts(self, texts: Sequence[str], place: str) -> Sequence[str]:
        if self.field.default:
            texts = [text or self.field.default for text in texts]
        for pattern in self._patterns:
            for i, text in enumerate(texts):
                if text and not pattern.matches(text):
                    raise self._error(place, i, f"{shown(text)} does not have the form that its feature needs")
        return texts

    def _numbers(self, values: Sequence[float], place: str) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            try:
                numbers = np.array(values, np.float64).astype(np.float32)
            except OverflowError:  # an integer of hundreds of digits
                numbers = np.array([_as_float(value) for value in values], np.float64).astype(np.float32)
        is_good = np.abs(numbers) <= self._largest
        if not is_good.all():
            i = int(is_good.argmin())
            raise self._error(place, i, f"{shown(values[i])} is not {self._allowed_numbers}")
        return numbers

    def _integers(self, values: Sequence[int], place: str) -> NDArray[np.int64]:
        is_bool = self.field.dtype == "bool"
        low, high = (0, 1) if is_bool else (-INT64_LIMIT, INT64_LIMIT - 1)
        try:
            integers = np.array(values, np.int64)
        except OverflowError:
            integers = None
        if integers is None or (is_bool and not ((integers >= 0) & (integers <= 1)).all()):
            i = next(i for i, value in enumerate(values) if not low <= value <= high)
            raise self._error(place, i, f"{shown(values[i])} is not a {self.field.dtype}")
        return integers

    def _error(self, place: str, index: int, problem: str) -> RequestError:
        where = place if place == "shared" else f"{place} {index}"
        return RequestError(f"{where}: {self.field.name}: {problem}")


class _Pattern:
    """A regular expression that takes memory and time proportional to the length of a text."""

    def __init__(self, pattern: str) -> None:
        self._short = re.compile(pattern)
        self._long = f"^(?:{pattern})$"

    def matches(self, text: str) -> bool:
        """Return whether the whole text matches."""
        if len(text) <= _LONG_TEXT:
            return self._short.fullmatch(text) is not None
        return bool(pc.match_substring_regex(pa.scalar(text), self._long).as_py())


def field_values(schema: Schema, content_fields: Sequence[str] = ()) -> dict[str, FieldValues]:
    """Return what reads the fields that requests contain, and those of contents, which may be missing, by name."""
    patterns = schema.text_patterns()
    separators = {name: feature.separators for feature in schema.all_features() for name in feature.inputs}
    of_contents = {name: replace(schema.field(name), optional=True) for name in content_fields}
    fields = of_contents | {name: schema.field(name) for name in schema.request_fields()}
    return {
        name: FieldValues(
            field,
            patterns.get(name, []) if field.dtype == "string" else [],
            separators.get(name) or (_LIST_SEPARATOR,),
            schema.largest_number(name),
        )
        for name, field in fields.items()
    }


def joined(values: Sequence[Any], separators: Sequence[str]) -> str:
    """Return the text that a list stands for; lists within it are joined by the further separators.

    Raises:
      ValueError: if the list holds something else, or the text would not be split into the same list.
    """
    separator, *inner = separators
    texts = [_text(value, inner) for value in values]
    text = separator.join(texts)
    if text.count(separator) > max(len(texts) - 1, 0):
        raise ValueError(f"a value contains {separator!r}, which separates the values")
    return text


def _text(value: Any, separators: Sequence[str]) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < INT64_LIMIT):
        return repr(value)
    if isinstance(value, list) and separators:
        return joined(value, separators)
    raise ValueError(f"holds {shown(value)}, not text or a number")


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def shown(value: object) -> str:
    """Format a value for a message."""
    if isinstance(value, list | dict):
        return reprlib.repr(value)
    try:
        text = repr(value[:60] if isinstance(value, str) else value)
    except ValueError:  # Python does not print integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
