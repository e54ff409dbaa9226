"""Parses the text of a pipeline file to an EasyRecConfig, with errors that name line and column.

Owns syntax: unknown and unsupported names, enum values. The meaning of values is checked elsewhere in this folder.
"""

from __future__ import annotations

import re

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from easyrec_mm import files
from easyrec_mm.config.scanner import MessagePath, Scanner
from easyrec_mm.errors import ConfigError
from easyrec_mm.files import StorageError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


def parse_config(text: str, path: str, ignore_unsupported: bool = False) -> tuple[EasyRecConfig, list[str]]:
    """Parse the text of a config; return the config and a note for each setting that is left out.

    Settings of EasyRec's language that change nothing here are left out in any case.

    Raises:
      ConfigError: naming every unknown setting with its position, or else every unsupported one that is not skipped.
    """
    try:
        unknown, unsupported = Scanner(text, path).scan(EasyRecConfig.DESCRIPTOR)
    except text_format.ParseError as error:
        raise ConfigError(_located(path, error)) from error
    if unknown:
        raise ConfigError("\n".join(unknown))
    errors = [item for item in unsupported if not item.harmless and not (ignore_unsupported and item.is_field)]
    if errors:
        advice = unsupported_advice(len(errors), any(item.is_field for item in errors))
        raise ConfigError("\n".join([*(item.message for item in errors), advice]))
    config = EasyRecConfig()
    try:
        # All names that the language does not have are known by now.
        text_format.Parse(text, config, allow_unknown_field=True)
    except text_format.ParseError as error:
        raise ConfigError(_located(path, error)) from error
    for parent in sorted({item.parent for item in unsupported}, reverse=True):
        _remove_if_empty(config, parent)
    return config, [item.message if item.harmless else f"skipped: {item.message}" for item in unsupported]


def unsupported_advice(number: int, are_fields: bool) -> str:
    """Return what to do about unsupported settings; fields, unlike values, can be skipped."""
    skip = ", or skip the fields with --ignore_unsupported" if are_fields else ""
    return f"{number} setting(s) of EasyRec's language that easyrec_mm does not support: remove them{skip}"


def _remove_if_empty(config: EasyRecConfig, path: MessagePath) -> None:
    """Remove a message in which only unsupported settings were set, such as metrics_set { max_f1 {} }."""
    message: Message = config
    for name, index in path[:-1]:
        message = getattr(message, name) if index < 0 else getattr(message, name)[index]
    for name, index in path[-1:]:
        child = getattr(message, name)
        if index < 0 and not child.ListFields():
            message.ClearField(name)
        elif index >= 0 and not child[index].ListFields():
            del child[index]


def read_text(path: str) -> str:
    """Read the text of a pipeline file.

    Raises:
      ConfigError: if it cannot be read.
    """
    try:
        return files.read(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the path of a pipeline config") from error
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


def reason_of(error: text_format.ParseError, text: str, descriptor: Descriptor) -> str:
    """Return why the text of a single setting cannot be parsed; of names that the language lacks, with the advice."""
    try:
        scan = Scanner(text, "").scan(descriptor)
    except text_format.ParseError:
        return unlocated(error)
    messages = [*scan.unknown, *(item.message for item in scan.unsupported)]
    return re.sub(r"^:\d+:\d+: ([^:]+: )?", "", messages[0]) if messages else unlocated(error)
