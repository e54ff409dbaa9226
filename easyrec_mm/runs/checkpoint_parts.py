"""What a checkpoint consists of while it is written: pieces of variables, collected in files of about one slice each.

Variables are written in slices, so that a table of many gigabytes is never copied as a whole. A checkpoint that holds
only the rows of tables that have changed since another one, its base, is called an increment. It contains

    increment/base/<name of the base>/<digest of its index>     nothing of interest; the name counts
    increment/rows/<n>                                          the changed rows of table n
    increment/values/<n>/<name>                                 their values of each variable of table n

and everything else under its own name, like any other checkpoint. Of a table that is divided among workers, each writes
a part of these: the rows that have changed among its own, which lie behind those of the workers before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.distribution.shards import Shard, shard_of
from easyrec_mm.features.field import LARGEST_NUMBER

SLICE_BYTES = 16 << 20
# Per variable: a table of 100 GiB is written to files of 400 MiB.
MOST_SLICES = 256
INCREMENT, BASE, ROWS, VALUES = "increment/", "increment/base/", "increment/rows/", "increment/values/"
# Ends of the names of running statistics that are means of squares.
_SQUARES = ("variance", "mean_of_square")
_ROW_NUMBER_BYTES = 8


class UselessNumberError(Exception):
    """A number of a checkpoint is not finite, or too large to compute with."""


class Table(NamedTuple):
    """An embedding table with the variables whose rows change together with its rows, by name."""

    name: str
    variables: dict[str, tf.Variable]

    @property
    def num_rows(self) -> int:
        """Return the number of rows, the same of all variables; of a part of a table, those of the part."""
        return int(next(iter(self.variables.values())).shape[0])

    @property
    def shard(self) -> Shard | None:
        """Return the part of a divided table that the variables hold; None if they hold all of it."""
        return shard_of(next(iter(self.variables.values())))

    @property
    def row_bytes(self) -> int:
        """Return the size of a row of all variables together."""
        return sum(_row_bytes(variable) for variable in self.variables.values())


class Increment(NamedTuple):
    """What has changed since a checkpoint.

    base    name of the checkpoint
    digest  digest of its index
    rows    table -> its changed rows, ascending; of a part of a table, counted from its first row
    places  divided table -> the number of changed rows in the parts before this one, and in all parts
    """

    base: str
    digest: str
    rows: Mapping[str, NDArray[np.int64]]
    places: Mapping[str, tuple[int, int]] = {}


@dataclass(frozen=True)
class Piece:
    """A part of a checkpoint that is written at a time.

    name      name of the value that it is a part of
    spec      which part, as TensorFlow's slice spec; "" for all of it
    variable  where it comes from
    rows      the rows of the variable; None for all
    table     the table with which the variable changes, if any
    is_last   whether no later piece has the same rows of the table
    """

    name: str
    spec: str
    variable: tf.Variable | tf.Tensor
    rows: range | NDArray[np.int64] | None = None
    table: str | None = None
    is_last: bool = False

    def value(self) -> tf.Tensor:
        """Return the current value."""
        if self.rows is None:
            return tf.convert_to_tensor(self.variable)
        rows = self.rows
        return tf.gather(self.variable, tf.range(rows.start, rows.stop) if isinstance(rows, range) else rows)


def pieces_of(
    variables: Mapping[str, tf.Variable | tf.Tensor],
    tables: Sequence[Table] = (),
    increment: Increment | None = None,
    is_first: bool = True,
) -> Iterator[Piece]:
    """Yield the pieces of a checkpoint; of the variables of tables, those that have the same rows one after another.

    Args:
      variables: everything that the checkpoint contains.
      tables: the tables among it, the same on all workers.
      increment: what has changed, for a checkpoint that contains only that.
      is_first: whether this is the first worker, which writes what all have; the others write their parts of tables.
    """
    of_tables = {name for table in tables for name in table.variables}
    for name, variable in variables.items():
        if name not in of_tables and (is_first or shard_of(variable) is not None):
            yield from _whole_pieces({name: variable}, None)
    for number, table in enumerate(tables):
        if not is_first and table.shard is None:
            continue
        if increment is None or _changes_are_larger(table, increment):
            yield from _whole_pieces(table.variables, table.name)
        else:
            yield from _changed_pieces(number, table, increment, is_first)
    if increment is not None and is_first:
        yield Piece(f"{BASE}{increment.base}/{increment.digest}", "", tf.constant(0, tf.int8))


def _whole_pieces(variables: Mapping[str, tf.Variable | tf.Tensor], table: str | None) -> Iterator[Piece]:
    """Yield the pieces of variables with the same number of rows; of parts of tables, the slices that they hold."""
    shapes = {name: list(variable.shape) for name, variable in variables.items()}
    last = list(variables)[-1]
    num_rows = shapes[last][0] if shapes[last] else 1
    row_bytes = max(_row_bytes(variable) for variable in variables.values())
    shard = shard_of(variables[last])
    if shard is not None and not num_rows:
        return
    first, num_of_all = (0, num_rows) if shard is None else (shard.first, shard.num_rows)
    for start, stop in slices(num_rows, row_bytes):
        is_all = stop - start == num_of_all
        for name, variable in variables.items():
            whole = [num_of_all, *shapes[name][1:]]
            spec = "" if is_all else slice_spec(whole, first + start, first + stop)
            rows = None if is_all and table is None else range(start, stop)
            yield Piece(name, spec, variable, rows, table, name == last)


def _changes_are_larger(table: Table, increment: Increment) -> bool:
    """Return whether the changed rows of a table, on all workers, take more than all of its rows."""
    num_rows = table.num_rows if table.shard is None else table.shard.num_rows
    _, num = _place(table, increment)
    return num * (table.row_bytes + _ROW_NUMBER_BYTES) >= num_rows * table.row_bytes


def _place(table: Table, increment: Increment) -> tuple[int, int]:
    """Return the number of changed rows in the parts of a table before that of this worker, and in all parts."""
    return increment.places.get(table.name, (0, len(increment.rows[table.name])))


def _changed_pieces(number: int, table: Table, increment: Increment, is_first: bool) -> Iterator[Piece]:
    rows = increment.rows[table.name]
    first, num = _place(table, increment)
    if not len(rows) and (num or not is_first):
        return
    first_row = 0 if table.shard is None else table.shard.first
    last = list(table.variables)[-1]
    row_bytes = max(_row_bytes(variable) for variable in table.variables.values())
    for start, stop in slices(len(rows), row_bytes):
        changed = rows[start:stop]
        is_all = len(changed) == num
        spec = "" if is_all else slice_spec([num], first + start, first + stop)
        yield Piece(f"{ROWS}{number}", spec, tf.constant(changed + first_row, tf.int64))
        for name, variable in table.variables.items():
            spec = "" if is_all else slice_spec([num, *variable.shape[1:]], first + start, first + stop)
            yield Piece(f"{VALUES}{number}/{name}", spec, variable, changed, table.name, name == last)


def _row_bytes(variable: tf.Variable | tf.Tensor) -> int:
    return int(variable.dtype.size * math.prod(variable.shape[1:])) if variable.dtype != tf.string else 1


def slices(num_rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """Return (first row, row after the last) of each slice in which rows are written or read."""
    if num_rows * row_bytes <= SLICE_BYTES:
        return [(0, num_rows)]
    rows_at_a_time = max(1, SLICE_BYTES // row_bytes, math.ceil(num_rows / MOST_SLICES))
    return [(start, min(start + rows_at_a_time, num_rows)) for start in range(0, num_rows, rows_at_a_time)]


def slice_spec(shape: Sequence[int], start: int, stop: int) -> str:
    """Return how TensorFlow writes the rows from `start` to before `stop` of a value of a shape."""
    dims = " ".join(str(dim) for dim in shape)
    return f"{dims} {start},{stop - start}" + ":-" * (len(shape) - 1)


class PartWriter:
    """Writes pieces to files of about one slice each.

    Args:
      folder: where the files are written.

    Attributes:
      parts: the prefixes of the files written so far.
    """

    def __init__(self, folder: Path) -> None:
        self.parts: list[str] = []
        self._folder = folder
        self._pieces: list[tuple[str, str, tf.Tensor]] = []
        self._num_bytes = 0

    def add(self, piece: Piece, value: tf.Tensor) -> None:
        """Write a piece.

        Raises:
          UselessNumberError: if no model works with a number in it.
        """
        name = piece.name.split("/", 3)[3] if piece.name.startswith(VALUES) else piece.name
        require_usable(name, value)
        self._pieces.append((piece.name, piece.spec, value))
        self._num_bytes += value.dtype.size * math.prod(value.shape)
        if self._num_bytes >= SLICE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        if self._pieces:
            self.parts.append(str(self._folder / f"part-{len(self.parts)}"))
            names, specs, values = (list(column) for column in zip(*self._pieces, strict=True))
            tf.raw_ops.SaveV2(prefix=self.parts[-1], tensor_names=names, shape_and_slices=specs, tensors=values)
            self._pieces, self._num_bytes = [], 0


def write_pieces(folder: Path, pieces: Iterable[Piece]) -> list[str]:
    """Write pieces to a folder; return the prefixes of the files.

    Raises:
      UselessNumberError: if no model works with a number in them.
    """
    writer = PartWriter(folder)
    for piece in pieces:
        writer.add(piece, piece.value())
    writer.flush()
    return writer.parts


def require_usable(name: str, value: tf.Tensor) -> None:
    """Check that a model works with a value of a checkpoint.

    Raises:
      UselessNumberError: if a number is not finite, or a weight is larger than LARGEST_NUMBER.
    """
    if not value.dtype.is_floating or not math.prod(value.shape):
        return
    is_square = not is_weight(name) or name.endswith(_SQUARES)
    limit = float(value.dtype.max) if is_square else min(float(value.dtype.max), LARGEST_NUMBER)
    # NumPy's limits need neither a copy nor TensorFlow's threads, which the training uses meanwhile.
    numbers = value.numpy()
    least, most = float(numbers.min()), float(numbers.max())
    if not (-limit <= least and most <= limit):
        raise UselessNumberError(f"{name} holds {max(most, -least):g}, with which no model works")


def is_weight(name: str) -> bool:
    """Return whether a checkpoint's entry is a weight rather than the state of a training."""
    return not name.startswith(("optimizer_", "average/", "progress/", "picture_bank/"))
