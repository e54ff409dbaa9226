"""The values that options take: one place for the flags of the commands and the arguments of the Python API.

A dataclass of options states a limit in the type of its field, such as `max_group_size: Positive`, by which arguments
are checked. The flag of the same name parses its text by the same limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

from easyrec_mm.errors import UserError

Parsed = TypeVar("Parsed", covariant=True)


class Limit(Protocol[Parsed]):
    """What is valid."""

    def parsed(self, text: str) -> Parsed:
        """Return the value of a flag; raise ValueError if it is not valid."""

    def checked(self, value: Any, place: str) -> Parsed:
        """Return the value of an argument; raise UserError if it is not valid."""


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`.

    kind         int, or float for any number
    description  what they are, for messages
    is_open      whether `least` itself is too small
    """

    kind: type[int] | type[float]
    description: str
    least: float
    most: float = 2**63 - 1  # of the numbers of NumPy and TensorFlow
    is_open: bool = False

    def holds(self, number: float) -> bool:
        """Return whether a number is one of them."""
        return self.least <= number <= self.most and not (self.is_open and number == self.least)

    def says(self, number: float) -> str:
        """Say which numbers are valid in place of one that is not."""
        return f"{self.description}, and below 2**63" if number >= 2**63 else self.description

    def parsed(self, text: str) -> float:
        """Return the number that a text is.

        Raises:
          ValueError: if it is not one of them; the message says what is.
        """
        try:
            number = self.kind(text) if self.kind is float or text.isdecimal() else math.nan
        except ValueError:
            number = math.nan
        if not self.holds(number):
            raise ValueError(f"{text!r} is not {self.says(number)}")
        return number

    def checked(self, value: Any, place: str) -> Any:
        """Return a value of Python as one of these numbers; NumPy's numbers become Python's.

        Raises:
          UserError: if it is not one of them; the message begins with `place`.
        """
        if getattr(value, "ndim", None) == 0:
            value = value.item()
        kinds = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise UserError(f"{place}: is {value!r}; give {self.description}")
        if not self.holds(value):
            raise UserError(f"{place}: is {value!r}; give {self.says(value)}")
        return value


@dataclass(frozen=True)
class Character:
    """One character that separates values.

    reserved  characters with another meaning, beside quotes and line ends
    """

    reserved: str = ""
    description: str = "one character that is not reserved, such as ';', '\\t' or '\\001'"

    def parsed(self, text: str) -> str:
        r"""Return the character that a text is, or describes, as \t or \001.

        Raises:
          ValueError: if it is not one character, or a reserved one.
        """
        try:
            character = text.encode().decode("unicode_escape") if text.isascii() else text
        except UnicodeDecodeError:
            character = ""
        if len(character) != 1 or character in '"\n\r\0' + self.reserved:
            raise ValueError(f"{text!r} is not {self.description}")
        return character

    def checked(self, value: Any, place: str) -> str:
        """Return the character that a value of Python is.

        Raises:
          UserError: if it is not one character, or a reserved one; the message begins with `place`.
        """
        try:
            return self.parsed(value if isinstance(value, str) else "")
        except ValueError as error:
            raise UserError(f"{place}: is {value!r}; give {self.description}") from error


POSITIVE = Range(int, "a whole number, 1 or more", 1)
NOT_NEGATIVE = Range(int, "a whole number, 0 or more", 0)
SHARE = Range(float, "a share from 0 to 1", 0, 1)
GIB = Range(float, "a number of GiB, 1 or more", 1)
SECONDS = Range(float, "a number of seconds, 0 or more", 0)
POSITIVE_SECONDS = Range(float, "a number of seconds above 0", 0, is_open=True)
MINUTES = Range(float, "a number of minutes above 0", 0, is_open=True)
SEPARATOR = Character()
# RTP separates values by the first two control characters.
RTP_SEPARATOR = Character("\1\2")

Positive: TypeAlias = Annotated[int, POSITIVE]
NotNegative: TypeAlias = Annotated[int, NOT_NEGATIVE]
Share: TypeAlias = Annotated[float, SHARE]
Gib: TypeAlias = Annotated[float, GIB]
Seconds: TypeAlias = Annotated[float, SECONDS]
Separator: TypeAlias = Annotated[str, SEPARATOR]
RtpSeparator: TypeAlias = Annotated[str, RTP_SEPARATOR]
