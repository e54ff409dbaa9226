"""Settings of the command line: `--set path.to.field=value` changes one setting of a config in place."""

from __future__ import annotations

import re

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from easyrec_mm.config.text import is_repeated, unlocated
from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


def apply_override(config: EasyRecConfig, override: str) -> None:
    """Apply "a.b[2].c=value" to a config in place; a repeated field takes "[x, y]", or one element by its index."""
    setting, equals, value = override.partition("=")
    place = f"--set {override}"
    if not equals:
        raise ConfigError(f"{place}: write it as path.to.field=value")
    message: Message = config
    *parents, last = setting.strip().split(".")
    for part in parents:
        message = _descend(message, part, place)
    name, index = _name_and_index(last, place)
    field = _field_of(message, name, place)
    parsed = type(message)()
    try:
        text_format.Parse(_as_text(field, value.strip()), parsed)
    except text_format.ParseError as error:
        raise ConfigError(f"{place}: {value!r} is not a valid value for {name}: {unlocated(error)}") from error
    if any(other.name != name for other, _ in parsed.ListFields()):
        raise ConfigError(f"{place}: {value!r} is not a valid value for {name}: it sets other fields too")
    if index is None:
        message.ClearField(name)
        message.MergeFrom(parsed)
        return
    target, source = getattr(message, name), getattr(parsed, name)
    if not is_repeated(field) or not -len(target) <= index < len(target) or len(source) != 1:
        raise ConfigError(f"{place}: {name} has no element {index}")
    if field.message_type:
        target[index].CopyFrom(source[0])
    else:
        target[index] = source[0]


def _descend(message: Message, part: str, place: str) -> Message:
    name, index = _name_and_index(part, place)
    field = _field_of(message, name, place)
    if not field.message_type:
        raise ConfigError(f"{place}: {name} is a value and has no fields")
    if not is_repeated(field):
        if index is not None:
            raise ConfigError(f"{place}: {name} has no elements; write it without [{index}]")
        child: Message = getattr(message, name)
        child.SetInParent()
        return child
    elements = getattr(message, name)
    if index is None and len(elements) == 1:
        index = 0
    if index is None:
        raise ConfigError(f"{place}: {name} has {len(elements)} elements; choose one, as in {name}[0]")
    if not -len(elements) <= index < len(elements):
        raise ConfigError(f"{place}: {name} has {len(elements)} elements and no element {index}")
    element: Message = elements[index]
    return element


def _name_and_index(part: str, place: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+)\])?", part)
    if not match:
        raise ConfigError(f"{place}: '{part}' is not a valid field name")
    return match.group(1), int(match.group(2)) if match.group(2) else None


def _field_of(message: Message, name: str, place: str) -> FieldDescriptor:
    field = message.DESCRIPTOR.fields_by_name.get(name)
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
    return f"{field.name}: {value}"
