"""Grouped samples in memory, as the readers and writers of all formats exchange them.

The column of a sample-level field has one value per sample, in the order of the samples; the column of a group-level
field has one value per group. A null is a missing value; a missing text may also be an empty text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.features.field import Kind
from easyrec_mm.formats.checks import BadGroup, GroupProblems, Ints, Mask, refuse_kind
from easyrec_mm.formats.columns import ARROW_TYPES, Typed, to_kind
from easyrec_mm.formats.typed_groups import TypedRows

T = TypeVar("T")
# Number of groups that are read at once, and also written at once as far as a format allows.
READ_GROUPS = 1 << 10


@dataclass(frozen=True)
class GroupFields:
    """The fields of grouped samples.

    kinds      field -> kind, in the order of the columns; without the group size
    labels     label fields in the order of the label columns
    image      field with the path of the picture, group-level
    size       name of the group size
    per_group  fields that have one value per group, including the image
    defaults   field -> value that replaces a missing number in a format without missing numbers; by default 0 or False
    column_separator  separator between the columns of a line of text
    """

    kinds: dict[str, Kind]
    labels: tuple[str, ...]
    image: str
    size: str
    per_group: frozenset[str]
    defaults: dict[str, Any]
    column_separator: str = "|"

    @property
    def sample_fields(self) -> tuple[str, ...]:
        """Return the fields in the features column of a line of text, in their order."""
        return tuple(name for name in self.kinds if name not in self.labels and name != self.image)


class Groups(NamedTuple):
    """G groups of S samples.

    size     int64 [G]
    columns  field -> [S], or [G] for a group-level field
    """

    size: Ints
    columns: dict[str, pa.Array]

    def select(self, is_wanted: Mask, fields: GroupFields) -> Groups:
        """Return the groups that `is_wanted` marks, bool [G]."""
        if is_wanted.all():
            return self
        of_sample = pa.array(np.repeat(is_wanted, self.size))
        of_group = pa.array(is_wanted)
        columns = {
            name: column.filter(of_group if name in fields.per_group else of_sample)
            for name, column in self.columns.items()
        }
        return Groups(self.size[is_wanted], columns)

    def slice(self, start: int, end: int, fields: GroupFields) -> Groups:
        """Return the groups from `start` to before `end`."""
        first = int(self.size[:start].sum())
        last = first + int(self.size[start:end].sum())
        columns = {
            name: column.slice(start, end - start) if name in fields.per_group else column.slice(first, last - first)
            for name, column in self.columns.items()
        }
        return Groups(self.size[start:end], columns)

    def samples(self, name: str, fields: GroupFields) -> pa.Array:
        """Return a field's values, one per sample."""
        column = self.columns[name]
        return column.take(self.group_of_samples) if name in fields.per_group else column

    @property
    def group_of_samples(self) -> pa.Array:
        """Return the index of the group of each sample, [S]."""
        return pa.array(np.repeat(np.arange(len(self.size)), self.size))


def joined(parts: Iterable[Groups]) -> Groups:
    """Concatenate parts of groups; at least one part is required."""
    parts = list(parts)
    columns = {
        name: pa.chunked_array([part.columns[name] for part in parts]).combine_chunks() for name in parts[0].columns
    }
    return Groups(np.concatenate([part.size for part in parts]), columns)


def offsets(size: Ints) -> pa.Array:
    """Return where the list of each group begins, and where the last list ends: int32 [G + 1]."""
    return pa.array(np.concatenate([[0], np.cumsum(size)]), pa.int32())


class GroupsPiece(NamedTuple):
    """Consecutive groups of a file, in their order.

    rows       int64 [G]: row of each group in the file, from 1
    refused    the groups that cannot be used
    """

    groups: Groups
    rows: Ints
    refused: list[BadGroup]


class GroupWriter(Protocol):
    """Writes a file of groups; the same groups result in the same bytes, in whatever portions they are written."""

    def write(self, groups: Groups) -> None:
        """Append groups to the file.

        Raises:
          DataError: if a value cannot be written in the format.
        """

    def close(self) -> None:
        """Write the groups that are still buffered, and close the file."""


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the values in lists of `size`; the last list may be shorter."""
    left = iter(values)
    while batch := list(islice(left, size)):
        yield batch


def numbered(records: Iterable[bytes]) -> Iterator[tuple[Ints, list[bytes]]]:
    """Yield the records of a file READ_GROUPS at a time, with the rows of these in the file, int64 [N]."""
    first = 1
    for portion in batched(records, READ_GROUPS):
        yield np.arange(first, first + len(portion)), portion
        first += len(portion)


def piece_of(rows: TypedRows, fields: GroupFields, numbers: Ints) -> GroupsPiece:
    """Convert valid groups to the kinds of their fields; a group with a value that its kind cannot hold is refused.

    Args:
      rows: valid groups among N groups.
      fields: fields of the groups.
      numbers: int64 [N], row of each group in its file.
    """
    problems = GroupProblems(rows.group_size)
    columns: dict[str, pa.Array] = {}
    for name, kind in fields.kinds.items():
        if name == fields.image:
            columns[name] = pa.array(rows.image_path, pa.binary()).cast(pa.string())
            continue
        column = rows.columns[name]
        typed = _label(column, kind) if name in fields.labels else to_kind(column, kind, strict=True)
        refuse_kind(typed.is_bad, column, name, kind, problems.refuse_samples)
        values = pc.if_else(pc.equal(typed.values, ""), None, typed.values) if kind == "string" else typed.values
        columns[name] = values.take(pa.array(problems.first)) if name in fields.per_group else values
    refused = [BadGroup(int(numbers[group]), *problem) for group, problem in rows.problems.items()]
    numbers = numbers[rows.kept_groups]
    good = ~problems.is_bad
    groups = Groups(rows.group_size, columns).select(good, fields)
    return GroupsPiece(groups, numbers[good], sorted(refused + problems.at_rows(numbers)))


def _label(column: pa.Array, kind: Kind) -> Typed:
    """Convert labels; the text of a whole number may have a fraction of zero."""
    typed = to_kind(column, kind, strict=True)
    if kind != "int64" or typed.is_bad is None:
        return typed
    numbers = to_kind(column, "float64", strict=True)
    integers = to_kind(numbers.values, "int64")
    is_bad = [part.is_bad for part in (numbers, integers) if part.is_bad is not None]
    return Typed(integers.values.cast(ARROW_TYPES[kind]), np.any(is_bad, axis=0) if is_bad else None)


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each portion of READ_GROUPS groups."""
    for start in range(0, size, READ_GROUPS):
        yield start, min(start + READ_GROUPS, size)
