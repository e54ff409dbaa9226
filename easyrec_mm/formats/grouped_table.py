"""Grouped samples in memory: what every format of them reads and writes.

A column of a sample-level field has a value a sample, sample behind sample; a column of a group-level field a value a
group. A null is a missing value; a missing text may also be an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.formats.checks import BadGroup, GroupProblems, Ints, Mask, is_text, require_one_value
from easyrec_mm.formats.columns import ARROW_TYPES, Kind

# Groups that are read, and as far as a format allows written, at once.
READ_GROUPS = 1 << 10


@dataclass(frozen=True)
class GroupFields:
    """The fields of grouped samples.

    kinds      field -> kind, in the order of the columns; without the group size
    labels     in the order of label columns
    image      path of the picture, group-level
    size       name of the group size
    per_group  fields that have one value a group; the image among them
    defaults   what stands for a missing number where a format has no place for it; 0 or False by default
    column_separator  between the columns of a line of text
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
        """What stands in the features column of a line of text, in its order."""
        return tuple(name for name in self.kinds if name not in self.labels and name != self.image)


class Groups(NamedTuple):
    """G groups of S samples.

    size     int64 [G]
    columns  field -> [S], or [G] of a group-level field
    """

    size: Ints
    columns: dict[str, pa.Array]

    def select(self, is_wanted: Mask, fields: GroupFields) -> Groups:
        """Some of the groups."""
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
        """Groups `start` to before `end`."""
        first = int(self.size[:start].sum())
        last = first + int(self.size[start:end].sum())
        columns = {
            name: column.slice(start, end - start) if name in fields.per_group else column.slice(first, last - first)
            for name, column in self.columns.items()
        }
        return Groups(self.size[start:end], columns)

    def samples(self, name: str, fields: GroupFields) -> pa.Array:
        """A field's values, one a sample."""
        column = self.columns[name]
        return column.take(self.group_of_samples) if name in fields.per_group else column

    @property
    def group_of_samples(self) -> pa.Array:
        """Which group each sample is of, [S]."""
        return pa.array(np.repeat(np.arange(len(self.size)), self.size))


def joined(parts: Iterable[Groups]) -> Groups:
    """Groups behind each other; of at least one part."""
    parts = list(parts)
    columns = {
        name: pa.chunked_array([part.columns[name] for part in parts]).combine_chunks() for name in parts[0].columns
    }
    return Groups(np.concatenate([part.size for part in parts]), columns)


def offsets(size: Ints) -> pa.Array:
    """Where the list of each group begins, and the last ends: int32 [G + 1]."""
    return pa.array(np.concatenate([[0], np.cumsum(size)]), pa.int32())


def empty_groups(fields: GroupFields) -> Groups:
    """None."""
    columns = {name: pa.array([], ARROW_TYPES[kind]) for name, kind in fields.kinds.items()}
    return Groups(np.zeros(0, np.int64), columns)


class GroupsPiece(NamedTuple):
    """Some groups of a file, as they stand in it.

    rows       int64 [G]: which rows of the file they are, from 1
    refused    those that cannot be used
    """

    groups: Groups
    rows: Ints
    refused: list[BadGroup]


class GroupWriter(Protocol):
    """Writes a file of groups; the same groups make the same bytes, in whatever portions they come."""

    def write(self, groups: Groups) -> None:
        """Write groups behind those that were written.

        Raises:
          DataError: if a value cannot be written in the format.
        """

    def close(self) -> None:
        """Write what is left, and close the file."""


def one_a_group(name: str, column: pa.Array, fields: GroupFields, problems: GroupProblems) -> pa.Array:
    """A column of samples [S] that has one value for each group -> these [G]; groups that disagree are refused."""
    default = fields.defaults.get(name, "" if is_text(column.type) else 0)
    filled = pc.fill_null(column, pa.scalar(default).cast(column.type))
    values = filled if is_text(filled.type) else filled.to_numpy(zero_copy_only=False)
    # As training reads it.
    values = values.astype(np.float32) if pa.types.is_floating(filled.type) else values
    require_one_value(name, values, problems)
    return column.take(pa.array(problems.first))


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Limits of portions of READ_GROUPS."""
    for start in range(0, size, READ_GROUPS):
        yield start, min(start + READ_GROUPS, size)
