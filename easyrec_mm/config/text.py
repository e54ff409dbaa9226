"""Parses the text of a pipeline file to an EasyRecConfig, with errors that name line and column.

Owns syntax: unknown and unsupported names, enum values. The meaning of values is checked elsewhere in this folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from easyrec_mm import files
from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.files import StorageError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


def parse_config(text: str, path: str, ignore_unsupported: bool = False) -> tuple[EasyRecConfig, list[str]]:
    """Parse the text of a config; return the config and a note for each skipped setting.

    Raises:
      ConfigError: naming every unknown setting with its position, or else every unsupported one that is not skipped.
    """
    unknown, unsupported = _Scanner(text, path).scan(EasyRecConfig.DESCRIPTOR)
    if unknown:
        raise ConfigError("\n".join(unknown))
    if unsupported and not (ignore_unsupported and all(item.skippable for item in unsupported)):
        errors = [item for item in unsupported if not (ignore_unsupported and item.skippable)]
        raise ConfigError(
            "\n".join(item.message for item in errors)
            + f"\n{len(errors)} setting(s) of EasyRec's language that easyrec_mm does not support: remove them"
            + (", or skip the fields with --ignore_unsupported" if any(item.skippable for item in errors) else "")
        )
    config = EasyRecConfig()
    try:
        text_format.Parse(text, config, allow_unknown_field=ignore_unsupported)
    except text_format.ParseError as error:
        raise ConfigError(_located(path, error)) from error
    return config, [f"skipped: {item.message}" for item in unsupported]


def is_repeated(field: FieldDescriptor) -> bool:
    """Return whether a setting is a list."""
    # TensorFlow 2.16 needs a protobuf version that does not have FieldDescriptor.is_repeated.
    return bool(field.default_value == [])


@dataclass(frozen=True)
class _Unsupported:
    message: str
    skippable: bool


class _Scanner:
    """Walks the text along the message descriptors and collects every name that the descriptors do not have.

    protobuf's own parser stops at the first unknown name and cannot distinguish a setting of EasyRec's language (a
    `reserved` name here) from a spelling mistake.
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
        """Consume one value, or a list of values whose first one has the index `first`; return their number."""
        tokens = self._tokens
        is_list, has_index = tokens.TryConsume("["), field is not None and is_repeated(field)
        count = 0
        while not (is_list and tokens.TryConsume("]")):
            self._value(field, f"{place}[{first + count}]" if has_index else place)
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
        """Return path, line and column of the token just consumed."""
        error = self._tokens.ParseErrorPreviousToken("")
        return f"{self._path}:{error.GetLine()}:{error.GetColumn()}"

    def _report(self, descriptor: Descriptor, name: str, place: str, where: str) -> None:
        proto = descriptor_pb2.DescriptorProto()
        descriptor.CopyToProto(proto)
        if name in proto.reserved_name:
            self._unsupported.append(_Unsupported(f"{where}: {place}: not supported", skippable=True))
        else:
            hint = did_you_mean(name, descriptor.fields_by_name)
            self._unknown.append(f"{where}: {place}: {descriptor.name} has no field '{name}'; {hint}")

    def _report_enum(self, enum: EnumDescriptor, value: str, place: str, where: str) -> None:
        proto = descriptor_pb2.EnumDescriptorProto()
        enum.CopyToProto(proto)
        choices = ", ".join(enum.values_by_name)
        if value in proto.reserved_name:
            # Never skipped: without its value the setting would fall back to a default with another meaning.
            message = f"{where}: {place}: {value} is not supported; choose one of {choices}"
            self._unsupported.append(_Unsupported(message, skippable=False))
        elif not re.fullmatch(r"\d+", value):
            self._unknown.append(
                f"{where}: {place}: {enum.name} has no value '{value}'; {did_you_mean(value, enum.values_by_name)}"
            )


def read_text(path: str) -> str:
    """Read the text of a pipeline file.

    Raises:
      ConfigError: if it cannot be read.
    """
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
    return f"{path}:{error.GetLine()}:{error.GetColumn()}: {unlocated(error)}"


def unlocated(error: text_format.ParseError) -> str:
    """Return the message of a parse error without line and column."""
    return re.sub(r"^\d+:\d+ : ", "", str(error))
