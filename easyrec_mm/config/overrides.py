"""Settings of the command line, which change a config in place.

`--set path.to.field=value` changes one setting, or one setting of several messages: path parts of lists take an index,
a range or a condition in brackets. EasyRec's `--edit_config_json` is an object of such paths and values.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from easyrec_mm.config.scanner import is_harmless, is_repeated, reserved_names
from easyrec_mm.config.text import reason_of, unsupported_advice
from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq
}  # fmt: skip
_CONDITION = re.compile(r"\s*([\w.\[\]-]+?)\s*(>=|<=|>|<|=)\s*(.*)", re.DOTALL)


class Override(NamedTuple):
    """A change of a config: the path of a setting and its new value, and what the user wrote, for messages."""

    place: str
    path: str
    value: str


class _UnsupportedError(Exception):
    """A path ends at a setting of EasyRec's language that is not supported."""

    def __init__(self, message: Message, name: str) -> None:
        super().__init__(name)
        self.message, self.name = message, name


def parse_override(text: str) -> Override:
    """Parse "a.b[2].c=value".

    Raises:
      ConfigError: if the path or the value is missing.
    """
    place = f"--set {text}"
    path, *value = _split(text, "=", most=1)
    if not value:
        raise ConfigError(f"{place}: write it as path.to.field=value")
    return Override(place, path, value[0])


def parse_edits(text: str) -> list[Override]:
    """Parse the JSON of EasyRec's --edit_config_json: {"train_config.num_steps": 100, ...}.

    Several paths and their values may be joined by ";". An object as a value holds settings of the message at the path.

    Raises:
      ConfigError: if the text is not such an object.
    """
    flag = "--edit_config_json"
    try:
        edits = json.loads(text)
    except ValueError as error:
        raise ConfigError(f'{flag}: is not JSON ({error}); write it as {{"train_config.num_steps": 100}}') from error
    if not isinstance(edits, dict):
        raise ConfigError(f'{flag}: is not an object; write it as {{"train_config.num_steps": 100}}')
    return edits_of(edits, flag)


def edits_of(edits: Mapping[str, Any], place: str) -> list[Override]:
    """Return the changes of an object as `parse_edits` takes it; `place` says where it comes from, for messages.

    Raises:
      ConfigError: if a value is None, or there are more paths than values.
    """
    return list(_edits(edits, "", place))


def _edits(edits: Mapping[str, Any], prefix: str, flag: str) -> Iterator[Override]:
    for key, value in edits.items():
        place = f"{flag}: {prefix}{key}"
        if isinstance(value, Mapping):
            yield from _edits(value, f"{prefix}{key}.", flag)
        elif ";" in key:
            paths, values = key.split(";"), _value_text(value, place).split(";")
            if len(paths) != len(values):
                raise ConfigError(f"{place}: {len(paths)} paths and {len(values)} values; give as many of both")
            for path, part in zip(paths, values, strict=True):
                yield Override(place, prefix + path.strip(), part.strip())
        elif value is None:
            raise ConfigError(f"{place}: null is not a value; leave the path out, or give a value")
        else:
            yield Override(place, prefix + key, _value_text(value, place))


def json_value(value: Any) -> Any:
    """Return a path or a value of NumPy as one that JSON has; for json.dumps(default=...).

    Raises:
      TypeError: if it is something else.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if type(value).__module__ == "numpy" and not isinstance(plain := value.tolist(), type(value)):
        return plain
    raise TypeError(f"{type(value).__name__} is not a value of a setting")


def _value_text(value: Any, place: str) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=json_value)
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise ConfigError(f"{place}: is of type {kind}; give a text, a number, a bool, or a list of them") from error


def apply_override(config: EasyRecConfig, override: str | Override, ignore_unsupported: bool = False) -> list[str]:
    """Apply a change to a config in place; return a note if the setting changes nothing here or is skipped.

    A repeated field takes "[x, y]", or one element by its index.

    Raises:
      ConfigError: if the path or the value does not exist, or is not supported.
    """
    place, path, value = parse_override(override) if isinstance(override, str) else override
    *parents, last = _split(path.strip(), ".")
    try:
        messages: list[Message] = [config]
        for part in parents:
            messages = [child for message in messages for child in _children(message, part, place)]
        for message in messages:
            _set(message, last, value.strip(), place)
    except _UnsupportedError as error:
        if is_harmless(error.message.DESCRIPTOR, error.name, value.strip()):
            return [f"{place}: {error.name} has no effect here"]
        if not ignore_unsupported:
            raise ConfigError(f"{place}: {error.name} is not supported\n{unsupported_advice(1, True)}") from error
        return [f"skipped: {place}: {error.name} is not supported"]
    return []


def setting_at(config: EasyRecConfig, place: str, path: str) -> tuple[FieldDescriptor, list[Any]]:
    """Return the field that a path names, and its values: one, or one for each message or element that is meant.

    Args:
      config: the config, which stays as it is.
      place: what the user wrote, for messages.
      path: as in `apply_override`.

    Raises:
      ConfigError: if the path does not exist, or is not supported.
    """
    messages: list[Message] = [EasyRecConfig()]
    messages[0].CopyFrom(config)  # following a path sets the messages on its way
    *parents, last = _split(path.strip(), ".")
    name, selector = _name_and_selector(last, place)
    try:
        for part in parents:
            messages = [child for message in messages for child in _children(message, part, place)]
        field = _field_of(messages[0], name, place)
    except _UnsupportedError as error:
        raise ConfigError(f"{place}: {error.name} is not supported") from error
    values = [getattr(message, name) for message in messages]
    if selector is not None and not is_repeated(field):
        raise ConfigError(f"{place}: {name} has no elements; write it without [{selector}]")
    if selector is not None:
        values = [value[index] for value in values for index in _indices(value, name, selector, place)]
    return field, values


def _split(text: str, separator: str, most: int = -1) -> list[str]:
    """Split a text at a character outside of brackets, at most `most` times."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == separator and depth <= 0 and len(parts) != most + 1:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _set(message: Message, part: str, value: str, place: str) -> None:
    name, selector = _name_and_selector(part, place)
    field = _field_of(message, name, place)
    parsed = type(message)()
    setting = _as_text(field, value)
    try:
        text_format.Parse(setting, parsed)
    except text_format.ParseError as error:
        reason = reason_of(error, setting, message.DESCRIPTOR)
        raise ConfigError(f"{place}: {value!r} is not a valid value for {name}: {reason}") from error
    if any(other.name != name for other, _ in parsed.ListFields()):
        raise ConfigError(f"{place}: {value!r} is not a valid value for {name}: it sets other fields too")
    if selector is None:
        message.ClearField(name)
        message.MergeFrom(parsed)
        return
    target, source = getattr(message, name), getattr(parsed, name)
    if not is_repeated(field) or len(source) != 1:
        raise ConfigError(f"{place}: {name} has no element {selector}")
    for index in _indices(target, name, selector, place):
        if field.message_type:
            target[index].CopyFrom(source[0])
        else:
            target[index] = source[0]


def _children(message: Message, part: str, place: str) -> list[Message]:
    """Return the messages that a part of a path means."""
    name, selector = _name_and_selector(part, place)
    field = _field_of(message, name, place)
    if not field.message_type:
        raise ConfigError(f"{place}: {name} is a value and has no fields")
    if not is_repeated(field):
        if selector is not None:
            raise ConfigError(f"{place}: {name} has no elements; write it without [{selector}]")
        child: Message = getattr(message, name)
        child.SetInParent()
        return [child]
    elements = getattr(message, name)
    if selector is None and len(elements) == 1:
        selector = "0"
    if selector is None:
        raise ConfigError(f"{place}: {name} has {len(elements)} elements; choose one, as in {name}[0]")
    return [elements[index] for index in _indices(elements, name, selector, place)]


def _indices(elements: Any, name: str, selector: str, place: str) -> list[int]:
    """Return the indices that a selector means: "2", "1:3", ":", or "tower_name=click"."""
    if re.fullmatch(r"\s*-?\d+\s*", selector):
        if not -len(elements) <= int(selector) < len(elements):
            raise ConfigError(f"{place}: {name} has {len(elements)} elements and no element {selector}")
        return [int(selector) % len(elements)]
    span = re.fullmatch(r"\s*(-?\d*)\s*:\s*(-?\d*)\s*", selector)
    if span:
        first, end = (int(text) if text not in ("", "-") else None for text in span.groups())
        indices = list(range(len(elements)))[first:end]
    else:
        indices = [i for i, element in enumerate(elements) if _holds(element, selector, name, place)]
    if not indices:
        raise ConfigError(f"{place}: none of the {len(elements)} elements of {name} is [{selector}]")
    return indices


def _holds(element: Any, condition: str, name: str, place: str) -> bool:
    match = _CONDITION.fullmatch(condition)
    if not match or not isinstance(element, Message):
        raise ConfigError(f"{place}: [{condition}] is neither an index, a range nor a condition such as [name=value]")
    key, comparison, text = match.groups()
    *parents, last = _split(key, ".")
    # A copy, because following a path sets the messages on its way.
    messages: list[Message] = [type(element)()]
    messages[0].CopyFrom(element)
    for part in parents:
        messages = [child for message in messages for child in _children(message, part, place)]
    return any(
        _COMPARISONS[comparison](value, wanted)
        for message in messages
        for value, wanted in _compared(message, last, text.strip().strip("'\""), f"{place}: [{condition}]")
    )


def _compared(message: Message, part: str, text: str, place: str) -> Iterator[tuple[Any, Any]]:
    """Yield each value of a setting in a condition, with the value that the text means in the type of the setting."""
    name, selector = _name_and_selector(part, place)
    field = _field_of(message, name, place)
    if field.message_type:
        raise ConfigError(f"{place}: {name} is not a value; name one of its fields")
    parsed = type(message)()
    setting = _as_text(field, text)
    try:
        text_format.Parse(setting, parsed)
    except text_format.ParseError as error:
        reason = reason_of(error, setting, message.DESCRIPTOR)
        raise ConfigError(f"{place}: {text!r} is not a valid value for {name}: {reason}") from error
    wanted, values = getattr(parsed, name), getattr(message, name)
    if not is_repeated(field):
        yield values, wanted
        return
    if selector is not None and values:
        values = [values[index] for index in _indices(values, name, selector, place)]
    yield from ((value, wanted[0]) for value in values if len(wanted) == 1)


def _name_and_selector(part: str, place: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"\s*(\w+)(?:\[(.*)\])?\s*", part, re.DOTALL)
    if not match:
        raise ConfigError(f"{place}: '{part}' is not a valid field name")
    return match.group(1), match.group(2)


def _field_of(message: Message, name: str, place: str) -> FieldDescriptor:
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None and name in reserved_names(message.DESCRIPTOR):
        raise _UnsupportedError(message, name)
    if field is None:
        raise ConfigError(
            f"{place}: {message.DESCRIPTOR.name} has no field '{name}'; "
            f"{did_you_mean(name, message.DESCRIPTOR.fields_by_name)}"
        )
    return field


def _as_text(field: FieldDescriptor, value: str) -> str:
    """Return the setting in protobuf's text format, adding the quotes of a string or the braces of a message."""
    if field.message_type:
        return f"{field.name}: {value}" if value[:1] in "{[" and value else f"{field.name} {{ {value} }}"
    is_text = field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    if is_text and value[:1] not in ('"', "'") and not (is_repeated(field) and value[:1] == "["):
        value = '"' + text_encoding.CEscape(value, as_utf8=True) + '"'
    if field.enum_type and value[:1] == "[":
        value = value.replace('"', "")  # JSON has no names without quotes
    return f"{field.name}: {value}"
