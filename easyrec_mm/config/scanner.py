"""Finds every name of a pipeline file that the config language does not have, with its position in the text.

protobuf's own parser stops at the first unknown name, and cannot distinguish a setting of EasyRec's language (a
`reserved` name here) from a spelling mistake, nor from a setting that stands in the wrong block because of a brace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from easyrec_mm.errors import did_you_mean
from easyrec_mm.protos import options_pb2

# The fields and indices that lead to a message; the index is -1 for a field that is not a list.
MessagePath = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Unsupported:
    """A setting of EasyRec's language that is not supported.

    message   says where it is
    parent    the message that it is set in
    harmless  whether it changes nothing here, so that a note is enough
    is_field  whether it is a whole field, which can be skipped, and not a value
    """

    message: str
    parent: MessagePath
    harmless: bool
    is_field: bool


class Scan(NamedTuple):
    """Names in a config that are not supported: messages about unknown names, and the known but unsupported ones."""

    unknown: list[str]
    unsupported: list[Unsupported]


class _Block(NamedTuple):
    """A block `name { ... }`: its message (None for an unknown name), and where it begins.

    indent  number of spaces before the name; None if something else stands before it
    """

    name: str
    descriptor: Descriptor | None
    line: int
    indent: int | None


class _Brace(NamedTuple):
    """A closing brace, by its line and column, and the block that it closes."""

    line: int
    column: int
    block: _Block


def is_repeated(field: FieldDescriptor) -> bool:
    """Return whether a setting is a list."""
    # TensorFlow 2.16 needs a protobuf version that does not have FieldDescriptor.is_repeated.
    return bool(field.default_value == [])


def reserved_names(descriptor: Descriptor) -> list[str]:
    """Return the names of EasyRec's language in a message that are not supported."""
    proto = descriptor_pb2.DescriptorProto()
    descriptor.CopyToProto(proto)
    return list(proto.reserved_name)


def is_harmless(descriptor: Descriptor, name: str, value: str) -> bool:
    """Return whether an unsupported setting with this value changes nothing here, as its message declares."""
    declared: str = descriptor.GetOptions().Extensions[options_pb2.harmless]
    for entry in declared.split("|"):
        harmless_name, _, harmless_value = entry.strip().partition(": ")
        if harmless_name == name and (not harmless_value or _is_equal(harmless_value, value)):
            return True
    return False


def _advice(enum: EnumDescriptor, value: str) -> str:
    """Return what to use in place of an unsupported value, as its enum declares, before further advice."""
    declared: str = enum.GetOptions().Extensions[options_pb2.advice]
    for entry in declared.split(" | "):
        name, _, text = entry.partition(": ")
        if name == value:
            return f"{text}; "
    return ""


def _is_equal(first: str, second: str) -> bool:
    try:
        return float(first) == float(second)
    except ValueError:
        return first.strip("'\"").lower() == second.strip("'\"").lower()


class Scanner:
    """Walks a text along the message descriptors."""

    def __init__(self, text: str, path: str) -> None:
        self._path, self._lines = path, text.split("\n")
        self._tokens = text_format.Tokenizer(self._lines)
        self._balance = _balance(self._lines)
        self._blocks: list[_Block] = []
        # Closing braces that stand further out, and further in, than the block that they close.
        self._outer: list[_Brace] = []
        self._inner: list[_Brace] = []
        self._scan = Scan([], [])

    def scan(self, root: Descriptor) -> Scan:
        """Return what the text contains that the language does not have.

        Raises:
          text_format.ParseError: for a mistake of syntax.
        """
        self._blocks = [_Block("", root, 0, None)]
        self._fields("", (), end="")
        return self._scan

    def _fields(self, place: str, path: MessagePath, end: str) -> None:
        tokens, descriptor = self._tokens, self._blocks[-1].descriptor
        counts: dict[str, int] = {}
        closed: _Brace | None = None
        while not tokens.AtEnd() and not (end and tokens.LookingAt(end)):
            line, column = self._position()
            if not end and tokens.token in ("}", ">"):
                raise self._extra_brace(_Brace(line, column, self._blocks[-1]), "no block is open here")
            name = tokens.ConsumeIdentifierOrNumber()
            field = descriptor.fields_by_name.get(name) if descriptor else None
            tokens.TryConsume(":")
            if field is None:
                self._report_name(name, (line, column), place, path, closed)
            block = _Block(name, field.message_type if field else None, line, self._indent(line, column))
            first = counts.get(name, 0)
            counts[name] = first + self._values(field, block, f"{place}{name}", path, first)
            if field is not None and field.message_type:
                closed = _Brace(*self._previous(), block)
            if not tokens.TryConsume(","):
                tokens.TryConsume(";")
        if end and tokens.AtEnd():
            raise self._missing_brace(*self._position(), "the text ends")
        if end:
            self._close(end)

    def _report_name(
        self, name: str, at: tuple[int, int], place: str, path: MessagePath, closed: _Brace | None
    ) -> None:
        """Report a name that the current message does not have; its value is the next token."""
        descriptor = self._blocks[-1].descriptor
        if descriptor is None:  # of what is within an unknown block, nothing is known
            return
        where = f"{self._path}:{at[0]}:{at[1]}: {place}{name}"
        if name not in reserved_names(descriptor):
            self._check_braces(name, *at, closed)
            hint = did_you_mean(name, descriptor.fields_by_name)
            self._scan.unknown.append(f"{where}: {descriptor.name} has no field '{name}'; {hint}")
            return
        harmless = is_harmless(descriptor, name, self._tokens.token)
        message = f"{where}: {'has no effect here' if harmless else 'not supported'}"
        self._scan.unsupported.append(Unsupported(message, path, harmless, is_field=True))

    def _values(self, field: FieldDescriptor | None, block: _Block, place: str, path: MessagePath, first: int) -> int:
        """Consume one value, or a list of values whose first one has the index `first`; return their number."""
        tokens = self._tokens
        is_list, has_index = tokens.TryConsume("["), field is not None and is_repeated(field)
        count = 0
        while not (is_list and tokens.TryConsume("]")):
            index = first + count
            at = f"{place}[{index}]" if has_index else place
            self._value(field, block, at, (*path, (block.name, index if has_index else -1)))
            count += 1
            if not is_list:
                break
            tokens.TryConsume(",")
        return count

    def _value(self, field: FieldDescriptor | None, block: _Block, place: str, path: MessagePath) -> None:
        tokens = self._tokens
        for opening, closing in ("{}", "<>"):
            if tokens.TryConsume(opening):
                self._blocks.append(block)
                self._fields(f"{place}.", path, closing)
                self._blocks.pop()
                return
        if field is not None and field.message_type:
            raise tokens.ParseError(f"a '{{' is missing after '{field.name}'")
        if tokens.token[:1] in ("'", '"'):
            tokens.ConsumeByteString()
            return
        tokens.TryConsume("-")
        value = tokens.token
        if not re.match(r"[\w.+-]", value):
            raise tokens.ParseError(f"Expected a value, got {value or 'the end of the file'}.")
        line, column = self._position()
        tokens.NextToken()
        if field is not None and field.enum_type and value not in field.enum_type.values_by_name:
            self._report_enum(field.enum_type, value, f"{self._path}:{line}:{column}: {place}", path)

    def _report_enum(self, enum: EnumDescriptor, value: str, where: str, path: MessagePath) -> None:
        proto = descriptor_pb2.EnumDescriptorProto()
        enum.CopyToProto(proto)
        choices = ", ".join(enum.values_by_name)
        if value in proto.reserved_name:
            # Never skipped: without its value the setting would fall back to a default with another meaning.
            message = f"{where}: {value} is not supported; {_advice(enum, value)}choose one of {choices}"
            self._scan.unsupported.append(Unsupported(message, path[:-1], harmless=False, is_field=False))
        elif not re.fullmatch(r"\d+", value):
            hint = did_you_mean(value, enum.values_by_name)
            self._scan.unknown.append(f"{where}: {enum.name} has no value '{value}'; {hint}")

    def _close(self, end: str) -> None:
        """Consume the brace that closes the current block."""
        line, column = self._position()
        block, indent = self._blocks[-1], self._indent(line, column)
        if indent is not None and block.indent is not None and indent != block.indent:
            (self._outer if indent < block.indent else self._inner).append(_Brace(line, column, block))
        self._tokens.Consume(end)

    def _check_braces(self, name: str, line: int, column: int, closed: _Brace | None) -> None:
        """Raise an error if an unknown name is one of another block, because a brace is missing or too many."""
        owners = [block.descriptor for block in self._blocks[:-1] if block.descriptor]
        owner = next((owner for owner in reversed(owners) if name in owner.fields_by_name), None)
        if self._balance > 0 and owner:
            raise self._missing_brace(line, column, f"'{name}' is a setting of {owner.name}")
        if self._balance < 0 and closed and closed.block.descriptor and name in closed.block.descriptor.fields_by_name:
            reason = f"it closes '{closed.block.name}' of line {closed.block.line}, to which '{name}' in line {line}"
            raise self._extra_brace(closed, f"{reason} belongs")

    def _missing_brace(self, line: int, column: int, reason: str) -> text_format.ParseError:
        """Return the error of a block that is still open, at the place where its brace, or one within, is missing."""
        block = self._blocks[-1]
        for brace in self._outer:
            if brace.line > block.line:
                opened = f"'{brace.block.name}' of line {brace.block.line} is still open"
                return text_format.ParseError(f"a '}}' is missing before this one: {opened}", brace.line, brace.column)
        text = f"a '}}' is missing before this: {reason}, but '{block.name}' of line {block.line} is still open"
        return text_format.ParseError(text, line, column)

    def _extra_brace(self, brace: _Brace, reason: str) -> text_format.ParseError:
        """Return the error of a brace too many: the first one that stands further in than its block, or this one."""
        if self._inner:
            brace = self._inner[0]
            reason = f"it closes '{brace.block.name}' of line {brace.block.line}"
        return text_format.ParseError(f"a '}}' too many: {reason}", brace.line, brace.column)

    def _position(self) -> tuple[int, int]:
        """Return line and column of the next token."""
        error = self._tokens.ParseError("")
        return error.GetLine(), error.GetColumn()

    def _previous(self) -> tuple[int, int]:
        """Return line and column of the token just consumed."""
        error = self._tokens.ParseErrorPreviousToken("")
        return error.GetLine(), error.GetColumn()

    def _indent(self, line: int, column: int) -> int | None:
        before = self._lines[line - 1][: column - 1] if line <= len(self._lines) else ""
        return None if before.strip() else len(before.expandtabs(8))


def _balance(lines: list[str]) -> int:
    """Return how many more braces open than close."""
    try:
        tokens = list(_tokens_of(lines))
    except text_format.ParseError:
        return 0
    return sum(token in ("{", "<") for token in tokens) - sum(token in ("}", ">") for token in tokens)


def _tokens_of(lines: list[str]) -> Iterator[str]:
    tokens = text_format.Tokenizer(lines)
    while not tokens.AtEnd():
        yield tokens.token
        tokens.NextToken()
