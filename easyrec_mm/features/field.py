"""A field: one value of a sample as the input holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Type of values in files.
Kind = Literal["int64", "float32", "float64", "bool", "string"]
# Type of a field in the network; bool is kept as int64, 0 or 1.
Dtype = Literal["int64", "bool", "float32", "string"]
# Name of a type in a config -> type of the values.
KINDS: dict[str, Kind] = {
    "INT32": "int64",
    "INT64": "int64",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BOOL": "bool",
    "STRING": "string",
}

# The largest magnitude of a number in data and of a weight: that of whole numbers of 64 bits, and one whose square is
# still finite in float32. Statistics of larger numbers, such as the variance of a batch norm, would become infinite.
LARGEST_NUMBER = 1e19
# Such a number in words.
A_NUMBER = "a number from -1e19 to 1e19"
# The same for a FLOAT or DOUBLE that is an id: from the next number on, whole numbers share a float32.
LARGEST_ID = 2.0**24 - 1
AN_ID = "a number from -16777215 to 16777215, beyond which ids would share a FLOAT; read the field as INT64 or STRING"


def dtype_of(kind: Kind) -> Dtype:
    """Return the type in the network of values of a kind."""
    return "float32" if kind == "float64" else kind


@dataclass(frozen=True)
class Field:
    """A value of a sample as the input holds it. `default` is the text that stands for an empty value.

    A field that has a `default_val` in the config is optional in requests to exported models. For a field with a
    `constant`, they take the value of that text instead of one of the request.
    """

    name: str
    dtype: Dtype
    default: str
    optional: bool = False
    constant: str | None = None

    @property
    def default_value(self) -> int | bool | float | str:
        """Return the default as a value."""
        return self.value(self.default)

    def value(self, text: str) -> int | bool | float | str:
        """Return the value that a text stands for; an empty text stands for the default.

        Raises:
          ValueError: if the text does not stand for a value of this dtype.
        """
        text = text or self.default
        if self.dtype == "bool":
            if text.lower() not in ("true", "false", "1", "0"):
                raise ValueError(f"'{text}' is not a bool")
            return text.lower() in ("true", "1")
        kinds: dict[str, type[int] | type[float] | type[str]] = {"int64": int, "float32": float, "string": str}
        return kinds[self.dtype](text)
