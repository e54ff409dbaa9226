"""Rules of single settings: ranges, choices and required other settings, as declared with each setting in protos/.

One walk over a config checks all rules. Conditions on more than one message are checked in the other files here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from easyrec_mm.config.scanner import is_repeated
from easyrec_mm.errors import Problems
from easyrec_mm.protos import options_pb2
from easyrec_mm.protos.options_pb2 import Rule


@dataclass(frozen=True)
class Interval:
    """A range of numbers; each of its ends is included or excluded."""

    least: float
    greatest: float
    has_least: bool
    has_greatest: bool

    @staticmethod
    def of(text: str) -> Interval:
        """Return the interval that a text such as "[0, 1)" describes."""
        match = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", text)
        if not match:
            raise ValueError(f"{text!r} is not an interval")
        opening, least, greatest, closing = match.groups()
        return Interval(float(least), float(greatest), opening == "[", closing == "]")

    def holds(self, number: float) -> bool:
        """Return whether a number is in the interval; NaN never is."""
        is_above = number > self.least or (self.has_least and number == self.least)
        return is_above and (number < self.greatest or (self.has_greatest and number == self.greatest))

    def __str__(self) -> str:
        least, greatest = f"{self.least:g}", f"{self.greatest:g}"
        if greatest == "inf":
            return f"{least} or more" if self.has_least else f"a number above {least}"
        if self.has_least and self.has_greatest:
            return f"a number from {least} to {greatest}"
        if not self.has_least and not self.has_greatest:
            return f"a number between {least} and {greatest}"
        if self.has_least:
            return f"a number from {least} to below {greatest}"
        return f"a number above {least}, at most {greatest}"


def rule_of(field: FieldDescriptor) -> Rule:
    """Return the rule of a setting; an empty rule if the setting has none."""
    return field.GetOptions().Extensions[options_pb2.rule]  # type: ignore[no-any-return]


def names_in(text: str) -> tuple[str, ...]:
    """Return the names in a rule's text, such as "mean | sum"."""
    return tuple(name.strip() for name in text.split("|") if name.strip())


def check_rules(config: Message, problems: Problems) -> None:
    """Add a problem for every setting of a config that breaks its own rule."""
    for place, message, field, value in _settings(config, ""):
        rule = rule_of(field)
        if rule.feature_types and not _is_given(message, f"feature_type: {rule.feature_types}"):
            continue  # config/features.py reports that it has no effect
        if rule.range:
            interval, number = Interval.of(rule.range), _decimal(value, field)
            if not interval.holds(number):
                problems.add(place, f"{number:g} is out of range; give {interval}")
        choices = names_in(rule.choices)
        if choices and value not in choices:
            problems.unknown(place, field.name.replace("_", " "), value, choices)
        if rule.needs and value != "" and not _is_given(message, rule.needs):
            problems.add(place, f"has no effect without {_needs_text(message, rule.needs)}; set it or remove this")


def _settings(message: Message, place: str) -> Iterator[tuple[str, Message, FieldDescriptor, Any]]:
    """Yield (config path, message, field, value) of each value set in a message and in its submessages."""
    for field, value in message.ListFields():
        here = f"{place}{field.name}"
        is_list = is_repeated(field)
        for i, element in enumerate(value if is_list else [value]):
            at = f"{here}[{i}]" if is_list else here
            yield at, message, field, element
            if field.message_type:
                yield from _settings(element, f"{at}.")


def _decimal(value: float, field: FieldDescriptor) -> float:
    """Return the number as it was written in the config (0.01), not as 32 bits store it (0.009999999776)."""
    return float(f"{value:.7g}") if field.type == FieldDescriptor.TYPE_FLOAT else float(value)


def _is_given(message: Message, needs: str) -> bool:
    name, _, values = needs.partition(":")
    value = getattr(message, name)
    if not values:
        return bool(value)
    enum = message.DESCRIPTOR.fields_by_name[name].enum_type
    return enum.values_by_number[value].name in names_in(values)


def _needs_text(message: Message, needs: str) -> str:
    name, _, values = needs.partition(":")
    if values:
        return f"{name}: {' or '.join(names_in(values))}"
    is_bool = message.DESCRIPTOR.fields_by_name[name].type == FieldDescriptor.TYPE_BOOL
    return f"{name}: true" if is_bool else name
