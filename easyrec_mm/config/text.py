"""Reads a pipeline file: text -> EasyRecConfig, with overrides, and errors that name line and column.

Owns syntax: unknown and unsupported names, enum values, required fields, `--set`. What the values mean is checked in
config/schema.py (data and features) and config/checks.py (network and training). Never imports TensorFlow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2, text_encoding, text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from easyrec_mm import files
from easyrec_mm.config.checks import check_model_and_training
from easyrec_mm.config.rules import check_rules
from easyrec_mm.config.schema import derive_schema
from easyrec_mm.errors import ConfigError, Problems, did_you_mean
from easyrec_mm.files import StorageError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema


@dataclass(frozen=True)
class Pipeline:
    """What the user wrote, checked. `notes` are remarks worth showing, such as skipped fields and unused labels."""

    path: str
    config: EasyRecConfig
    schema: Schema
    notes: tuple[str, ...]


def load_pipeline(path: str, overrides: list[str] | None = None, ignore_unsupported: bool = False) -> Pipeline:
    """Read and check a pipeline file.

    Args:
      path: the file.
      overrides: settings as the command line takes them, "train_config.num_steps=100".
      ignore_unsupported: skip fields of EasyRec's language that are not supported, noting each, instead of failing.

    Raises:
      ConfigError: naming every problem found at the first stage that finds any.
    """
    text = _read_text(path)
    config, notes = parse_config(text, path, ignore_unsupported)
    for override in overrides or []:
        apply_override(config, override)
    _require_fields(config, path)
    rules = Problems(path)
    check_rules(config, rules)
    problems = Problems(path, earlier=rules)
    schema = derive_schema(config, problems)
    check_model_and_training(config, schema, problems)
    problems.raise_if_any()
    rules.raise_if_any()
    return Pipeline(path, config, schema, (*notes, *problems.notes))


def write_config(config: EasyRecConfig, path: str) -> None:
    """Write a config as text that `load_pipeline` reads."""
    Path(path).write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")


def parse_config(text: str, path: str, ignore_unsupported: bool = False) -> tuple[EasyRecConfig, list[str]]:
    """Parse text; unknown names fail with their place, unsupported ones fail all at once or come back as notes."""
    unknown, unsupported = _Scanner(text, path).scan(EasyRecConfig.DESCRIPTOR)
    if unknown:
        raise ConfigError("\n".join(unknown))
    if unsupported and not (ignore_unsupported and all(item.skippable for item in unsupported)):
        kept = [item for item in unsupported if not (ignore_unsupported and item.skippable)]
        raise ConfigError(
            "\n".join(item.message for item in kept)
            + f"\n{len(kept)} setting(s) of EasyRec's language that easyrec_mm does not support: remove them"
            + (", or skip the fields with --ignore_unsupported" if any(item.skippable for item in kept) else "")
        )
    config = EasyRecConfig()
    try:
        text_format.Parse(text, config, allow_unknown_field=ignore_unsupported)
    except text_format.ParseError as error:
        raise ConfigError(_located(path, error)) from error
    return config, [f"skipped: {item.message}" for item in unsupported]


def apply_override(config: EasyRecConfig, override: str) -> None:
    """Change one setting in place: "a.b[2].c=value". A repeated field takes "[x, y]", or one element by its index."""
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
        raise ConfigError(f"{place}: {value!r} is no value for {name}: {_unlocated(error)}") from error
    if any(other.name != name for other, _ in parsed.ListFields()):
        raise ConfigError(f"{place}: {value!r} is no value for {name}: it sets other fields too")
    if index is None:
        message.ClearField(name)
        message.MergeFrom(parsed)
        return
    target, source = getattr(message, name), getattr(parsed, name)
    if not _is_repeated(field) or not -len(target) <= index < len(target) or len(source) != 1:
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
    if not _is_repeated(field):
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


def _is_repeated(field: FieldDescriptor) -> bool:
    # TensorFlow 2.16 needs a protobuf without FieldDescriptor.is_repeated.
    return bool(field.default_value == [])


def _name_and_index(part: str, place: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+)\])?", part)
    if not match:
        raise ConfigError(f"{place}: '{part}' is no field name")
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
    """The setting in text format; a string needs no quotes and a message no braces."""
    if field.message_type:
        return f"{field.name}: {value}" if value[:1] in "{[" and value else f"{field.name} {{ {value} }}"
    is_text = field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    if is_text and value[:1] not in ('"', "'") and not (_is_repeated(field) and value[:1] == "["):
        value = '"' + text_encoding.CEscape(value, as_utf8=True) + '"'
    return f"{field.name}: {value}"


@dataclass(frozen=True)
class _Unsupported:
    message: str
    skippable: bool


class _Scanner:
    """Walks the text beside the message descriptors and collects every name that they do not have.

    protobuf's own parser stops at the first unknown name and cannot tell a setting of EasyRec's language (a `reserved`
    name here) from a spelling mistake.
    """

    def __init__(self, text: str, path: str) -> None:
        self._path = path
        self._tokens = text_format.Tokenizer(text.split("\n"))
        self._unknown: list[str] = []
        self._unsupported: list[_Unsupported] = []

    def scan(self, root: Descriptor) -> tuple[list[str], list[_Unsupported]]:
        try:
            self._fields(root, "", end=None)
        except text_format.ParseError as error:
            raise ConfigError(_located(self._path, error)) from error
        return self._unknown, self._unsupported

    def _fields(self, descriptor: Descriptor | None, place: str, end: str | None) -> None:
        tokens = self._tokens
        counts: dict[str, int] = {}
        while not tokens.AtEnd() and not (end and tokens.LookingAt(end)):
            name = tokens.ConsumeIdentifierOrNumber()
            where = self._where()
            field = descriptor.fields_by_name.get(name) if descriptor else None
            if descriptor is not None and field is None:
                self._report(descriptor, name, f"{place}{name}", where)
            tokens.TryConsume(":")
            first = counts.get(name, 0)
            counts[name] = first + self._values(field, f"{place}{name}", first)
            if not tokens.TryConsume(","):
                tokens.TryConsume(";")
        if end:
            tokens.Consume(end)

    def _values(self, field: FieldDescriptor | None, place: str, first: int) -> int:
        """One value, or a list of them, of which the first has that index; their number."""
        tokens = self._tokens
        is_list, is_repeated = tokens.TryConsume("["), field is not None and _is_repeated(field)
        count = 0
        while not (is_list and tokens.TryConsume("]")):
            self._value(field, f"{place}[{first + count}]" if is_repeated else place)
            count += 1
            if not is_list:
                break
            tokens.TryConsume(",")
        return count

    def _value(self, field: FieldDescriptor | None, place: str) -> None:
        tokens = self._tokens
        if tokens.TryConsume("{"):
            self._fields(field.message_type if field else None, f"{place}.", "}")
        elif tokens.TryConsume("<"):
            self._fields(field.message_type if field else None, f"{place}.", ">")
        elif tokens.token[:1] in ("'", '"'):
            tokens.ConsumeByteString()
        else:
            tokens.TryConsume("-")
            value = tokens.token
            if not re.match(r"[\w.+-]", value):
                raise tokens.ParseError(f"Expected a value, got {value or 'the end of the file'}.")
            tokens.NextToken()
            if field is not None and field.enum_type and value not in field.enum_type.values_by_name:
                self._report_enum(field.enum_type, value, place, self._where())

    def _where(self) -> str:
        """Line and column of the token just consumed."""
        error = self._tokens.ParseErrorPreviousToken("")
        return f"{self._path}:{error.GetLine()}:{error.GetColumn()}"

    def _report(self, descriptor: Descriptor, name: str, place: str, where: str) -> None:
        proto = descriptor_pb2.DescriptorProto()
        descriptor.CopyToProto(proto)
        if name in proto.reserved_name:
            self._unsupported.append(_Unsupported(f"{where}: {place}: not supported", skippable=True))
        else:
            known = did_you_mean(name, descriptor.fields_by_name)
            self._unknown.append(f"{where}: {place}: {descriptor.name} has no field '{name}'; {known}")

    def _report_enum(self, enum: EnumDescriptor, value: str, place: str, where: str) -> None:
        proto = descriptor_pb2.EnumDescriptorProto()
        enum.CopyToProto(proto)
        choices = ", ".join(enum.values_by_name)
        if value in proto.reserved_name:
            # Without its value the setting would fall back to a default of another meaning: never skipped.
            message = f"{where}: {place}: {value} is not supported; choose one of {choices}"
            self._unsupported.append(_Unsupported(message, skippable=False))
        elif not re.fullmatch(r"\d+", value):
            self._unknown.append(
                f"{where}: {place}: {enum.name} has no value '{value}'; {did_you_mean(value, enum.values_by_name)}"
            )


def _read_text(path: str) -> str:
    try:
        return files.read(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the pipeline config with --pipeline_config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 text; save the config as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except StorageError as error:
        raise ConfigError(f"{path}: cannot be read: {error.reason}") from error


def _located(path: str, error: text_format.ParseError) -> str:
    return f"{path}:{error.GetLine()}:{error.GetColumn()}: {_unlocated(error)}"


def _unlocated(error: text_format.ParseError) -> str:
    return re.sub(r"^\d+:\d+ : ", "", str(error))


def _require_fields(config: EasyRecConfig, path: str) -> None:
    """text_format.Parse accepts a message whose required fields are missing."""
    missing: list[str] = []
    if not config.IsInitialized(missing):
        raise ConfigError("\n".join(f"{path}: {place}: is required and missing" for place in missing))
