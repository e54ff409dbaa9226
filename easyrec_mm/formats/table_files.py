"""Files of tables with one row per group: Parquet with grouped samples, or Parquet and CSV with one row per sample.

Rows are read and shuffled as tables, many at a time. A row of a flat log is a group of one sample; in training, rows
with the same picture are placed next to each other within the shuffle buffer, so that the image tower sees the picture
only once in a batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from easyrec_mm.errors import DataError
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.files.waiting import reading, reading_each
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.data_files import NUM_AHEAD
from easyrec_mm.formats.pieces import TO_END, Piece
from easyrec_mm.formats.source import TEXT_GROUPS, Chunk, GroupRows, Order, Share
from easyrec_mm.formats.typed_groups import PROBLEM, ROW, TextGroup
from easyrec_mm.schema import Schema

# Number of files read in parallel when rows are shuffled. Fixed, because it determines the order of the rows.
NUM_OPEN_FILES = 4
# Column with the index of the file that a row comes from.
_FILE = "easyrec_mm:file"


class TableReader(Protocol):
    """Reads files of tables."""

    @property
    def counts_at_once(self) -> bool:
        """See Source.counts_at_once."""

    def read(self, file: str) -> Iterator[pa.Table]:
        """Yield the rows of a file, some at a time."""

    def count(self, file: str) -> int:
        """Return the number of rows of a file."""

    def ahead(self, files: Sequence[str]) -> None:
        """Begin to fetch the files that are read next."""


class TableGroups(Protocol):
    """Reads groups from the rows of tables; see GroupTensors and TypedGroups."""

    @property
    def is_flat(self) -> bool:
        """Return whether a row is one sample."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of a table that are read."""

    def prepare(self, place: str, table: pa.Table) -> pa.Table:
        """Return the columns that are read, converted to types that do not depend on the file."""

    def signature(self) -> Any:
        """Return the specs of the result of `arrays`."""

    def arrays(self, table: pa.Table) -> Any:
        """Return the groups of a table as arrays, for `rows`."""

    def rows(self, arrays: Any) -> GroupRows:
        """Return the groups for the result of `arrays` as tensors; runs within a graph."""

    def texts(self, table: pa.Table) -> Iterable[TextGroup | Problem]:
        """Return the groups as texts."""


@dataclass
class TableSource:
    """A Source of the groups in files of tables.

    Args:
      files: paths of the files.
      schema: fields and tasks.
      groups: reads groups from the tables.
      order: order of the rows in an epoch.
      reader: reads tables from a file.

    Raises:
      DataError: if no file contains a row, or a file cannot be read or lacks a column.
    """

    files: list[str]
    schema: Schema
    groups: TableGroups
    order: Order
    reader: TableReader
    is_read_again = False
    _failure: DataError | None = field(default=None, init=False)
    _first: tuple[str, pa.Schema] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._read_files = self.order.files_of(len(self.files))
        table = next((table for table in self._tables(self._read_files) if len(table)), None)
        if table is None:
            names = ", ".join(self.files[i] for i in self._read_files[:3])
            raise DataError(f"{names}: no row of data; give files that hold groups")
        self._no_rows = table.slice(0, 0)

    @property
    def chunk_size(self) -> int:
        """See Source.chunk_size; larger than for records, because the calls of Arrow and NumPy hold Python's lock."""
        return 8192 if self.groups.is_flat else 1024

    @property
    def counts_at_once(self) -> bool:
        """See Source.counts_at_once."""
        return self.reader.counts_at_once

    @property
    def record_specs(self) -> tuple[Any, ...]:
        """See Source.record_specs."""
        numbers = tf.TensorSpec([None], tf.int64)
        return numbers, numbers, numbers, self.groups.signature()

    def records(
        self, num_epochs: int, num_skipped: int, size: int, share: Share | None = None, first_epoch: int = 0
    ) -> tf.data.Dataset:
        """See Source.records; the groups are already checked, and the dataset can be iterated only once."""
        return self._dataset(self._chunks(first_epoch, num_epochs, num_skipped, size), share)

    def records_of(self, pieces: Sequence[Piece], size: int) -> tf.data.Dataset:
        """See Source.records_of; as for `records`."""
        return self._dataset(self._chunks_of(pieces, size), None)

    def _dataset(self, parts_of_chunks: Iterator[list[tuple[int, pa.Table]]], share: Share | None) -> tf.data.Dataset:
        chunks = InOrder(parts_of_chunks)
        specs = tf.nest.flatten(self.record_specs)

        def read(index: int) -> list[Any]:
            try:
                parts = chunks.get(index)
            except DataError as error:
                self._failure = error
                raise
            return tf.nest.flatten(self._read(parts, share)) if parts else [_nothing(spec.dtype) for spec in specs]

        def element(index: tf.Tensor) -> Any:
            # from_generator would take one and a half times as long.
            tensors = tf.numpy_function(read, [index], [spec.dtype for spec in specs])
            for tensor, spec in zip(tensors, specs, strict=True):
                tensor.set_shape(spec.shape)
            return tf.nest.pack_sequence_as(self.record_specs, tensors)

        elements = tf.data.Dataset.counter().map(element, num_parallel_calls=2, deterministic=True)
        return elements.take_while(lambda epoch, *_: tf.size(epoch) > 0)

    def nothing(self) -> tuple[Any, ...]:
        """See Source.nothing."""
        arrays = tf.nest.flatten(self._read([(0, self._no_rows)], None))
        specs = tf.nest.flatten(self.record_specs)
        tensors = [tf.constant(values, spec.dtype) for values, spec in zip(arrays, specs, strict=True)]
        element: tuple[Any, ...] = tf.nest.pack_sequence_as(self.record_specs, tensors)
        return element

    def parse(self, *element: Any) -> Chunk:
        """See Source.parse."""
        epoch, file, row, arrays = element
        return Chunk(epoch, file, row, self.groups.rows(arrays))

    def explain(self, evidence: bytes) -> Problem:
        """See Source.explain."""
        return Problem.decode(evidence)

    def count(self, files: Sequence[int]) -> int:
        """See Source.count."""
        num_rows = 0
        for file in (self.files[i] for i in files):
            with reading(file):
                num_rows += self.reader.count(file)
        return num_rows

    def texts(self) -> Iterator[tuple[str, int, TextGroup | Problem]]:
        """See Source.texts; rows that cannot be read come at their places, although readers yield them apart."""
        unreadable: deque[tuple[str, int, TextGroup | Problem]] = deque()
        for table in self._tables(self._read_files):
            texts = self._texts_of(table)
            if PROBLEM in table.column_names and not table[PROBLEM].null_count:
                unreadable.extend(texts)
                continue
            for file, row, text in texts:
                while unreadable and (unreadable[0][0] != file or unreadable[0][1] < row):
                    yield unreadable.popleft()
                yield file, row, text
        yield from unreadable

    def _texts_of(self, table: pa.Table) -> Iterator[tuple[str, int, TextGroup | Problem]]:
        for start in range(0, len(table), TEXT_GROUPS):
            part = table.slice(start, TEXT_GROUPS)
            places = (self.files[i] for i in part[_FILE].to_pylist())
            yield from zip(places, part[ROW].to_pylist(), self.groups.texts(part), strict=True)

    def failure(self, error: tf.errors.OpError) -> DataError | None:
        """See Source.failure."""
        return self._failure

    def check_whole(self, stop: threading.Event, files: Collection[int]) -> None:
        """See Source.check_whole; does nothing, because Arrow raises an error for a truncated Parquet or gzip file."""

    def _chunks(
        self, first_epoch: int, num_epochs: int, num_skipped: int, size: int
    ) -> Iterator[list[tuple[int, pa.Table]]]:
        """Yield chunks of `size` rows each, as parts (epoch, rows) with rows of one epoch."""
        epochs = range(first_epoch, num_epochs) if num_epochs else count(first_epoch)
        files, num_skipped = self._without_skipped(num_skipped)
        tables = (
            (epoch, table)
            for epoch in epochs
            for table in self._epoch(epoch, files if epoch == first_epoch else self._read_files)
        )
        return _in_chunks(tables, num_skipped, size)

    def _without_skipped(self, num_skipped: int) -> tuple[list[int], int]:
        """Return the files behind those of which all rows are skipped, and the number of rows that remain to skip."""
        # Which shuffled rows come first depends on the tables in which they are read, so these are read.
        if self.order.is_shuffled or not self.reader.counts_at_once:
            return self._read_files, num_skipped
        for place, file in enumerate(self._read_files):
            num_rows = self.count([file])
            if num_rows > num_skipped:
                return self._read_files[place:], num_skipped
            num_skipped -= num_rows
        return [], num_skipped

    def _chunks_of(self, pieces: Sequence[Piece], size: int) -> Iterator[list[tuple[int, pa.Table]]]:
        """Yield chunks like `_chunks`, each of one piece."""
        for number, piece in enumerate(pieces, 1):
            self.reader.ahead([self.files[following.file] for following in pieces[number : number + NUM_AHEAD]])
            tables = _one_ahead(self._tables([piece.file]))
            yield from _in_chunks(((0, table) for table in _until(tables, piece.end)), piece.first, size)

    def _read(self, parts: list[tuple[int, pa.Table]], share: Share | None) -> tuple[Any, ...]:
        """Return a Chunk as arrays."""
        epochs = np.repeat(np.array([epoch for epoch, _ in parts], np.int64), [len(table) for _, table in parts])
        table = pa.concat_tables(table for _, table in parts)
        if share is not None:
            table = table.filter(pa.array(share.is_own(np.arange(len(table)))))
        table = table.combine_chunks()
        return epochs, table[_FILE].to_numpy(), table[ROW].to_numpy(), self.groups.arrays(table)

    def _epoch(self, epoch: int, files: Sequence[int]) -> Iterator[pa.Table]:
        """Yield the tables of these files in the order of an epoch, with columns _FILE and ROW."""
        if not self.order.is_shuffled:
            yield from _one_ahead(self._tables(files))
            return
        random = np.random.default_rng([self.order.seed, epoch])
        waiting = deque(files[i] for i in random.permutation(len(files)))
        opened: deque[Iterator[pa.Table]] = deque()
        held: list[pa.Table] = []
        while waiting or opened or held:
            while waiting and len(opened) < NUM_OPEN_FILES:
                opened.append(_one_ahead(self._tables([waiting.popleft()])))
                self.reader.ahead([self.files[i] for i in islice(waiting, NUM_AHEAD)])
            if opened:
                table = next(opened[0], None)
                if table is None:
                    opened.popleft()
                    continue
                opened.rotate(-1)
                held.append(table)
            # Two buffers are shuffled at a time and one is yielded: each row is copied twice, at any buffer size.
            num_held = sum(map(len, held))
            if num_held < 2 * self.order.num_shuffled and (opened or waiting):
                continue
            rows = pa.concat_tables(held)
            order = random.permutation(num_held)
            num_left = self.order.num_shuffled if opened or waiting else 0
            held = [rows.take(pa.array(order[:num_left]))] if num_left else []
            yield self._side_by_side(rows.take(pa.array(order[num_left:])), random)

    def _side_by_side(self, table: pa.Table, random: np.random.Generator) -> pa.Table:
        """Place rows with the same picture next to each other, pictures in random order; grouped rows are unchanged."""
        if not self.groups.is_flat or not self.schema.image.field:
            return table
        picture = table[self.schema.image.field].combine_chunks().dictionary_encode()
        code = pc.fill_null(picture.indices, 0).to_numpy(zero_copy_only=False)
        place = random.permutation(max(len(picture.dictionary), 1))
        return table.take(pa.array(np.argsort(place[code], kind="stable")))

    def _tables(self, indices: Sequence[int]) -> Iterator[pa.Table]:
        """Yield the tables of these files, with columns _FILE and ROW."""
        for number, index in enumerate(indices, 1):
            first = 1
            self.reader.ahead([self.files[i] for i in indices[number : number + NUM_AHEAD]])
            for table in reading_each(self.files[index], self.reader.read(self.files[index])):
                rows = self.groups.prepare(self.files[index], table)
                self._require_equal_types(self.files[index], rows.select(self.groups.columns).schema)
                if ROW not in rows.column_names:
                    rows = rows.append_column(ROW, pa.array(np.arange(first, first + len(rows))))
                    first += len(rows)
                yield rows.append_column(_FILE, pa.array(np.full(len(rows), index)))

    def _require_equal_types(self, file: str, columns: pa.Schema) -> None:
        """Check that columns are lists in all files or in none."""
        if self._first is None:
            self._first = (file, columns)
        elif columns != self._first[1]:
            first, types = self._first
            name, kind = next((column.name, column.type) for column in columns if column != types.field(column.name))
            raise DataError(
                f"{file}: column '{name}' is {kind}, and {types.field(name).type} in "
                f"{first}; write all files with the same types"
            )


def _one_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same tables, each of them read while the previous one is used."""
    pool = DaemonPool(1, "tables")
    try:
        following = pool.submit(next, tables, None)
        while (table := following.result()) is not None:
            following = pool.submit(next, tables, None)
            yield table
    finally:
        pool.close()


class InOrder:
    """The elements of an iterator by index, for threads that request them almost in order."""

    def __init__(self, elements: Iterator[Any]) -> None:
        self._elements = elements
        self._lock = threading.Lock()
        self._next = 0
        self._read: dict[int, Any] = {}
        self._error: Exception | None = None

    def get(self, index: int) -> Any:
        """Return element `index`, which may be requested only once; None after the end.

        An error of the iterator applies to all elements from there on: a thread that requests a later one may see it.
        """
        with self._lock:
            while self._next <= index and self._error is None:
                try:
                    self._read[self._next] = next(self._elements, None)
                except Exception as error:
                    self._error = error
                self._next += 1
            if index not in self._read and self._error is not None:
                raise self._error
            return self._read.pop(index)


def _nothing(dtype: tf.DType) -> np.ndarray:
    return np.empty(0, object if dtype == tf.string else dtype.as_numpy_dtype)


def _in_chunks(
    tables: Iterable[tuple[int, pa.Table]], num_skipped: int, size: int
) -> Iterator[list[tuple[int, pa.Table]]]:
    """Yield the same rows without the first `num_skipped`, as lists of parts with `size` rows each."""
    waiting: deque[tuple[int, pa.Table]] = deque()
    num_waiting = 0
    for epoch, table in tables:
        rows = table.slice(min(num_skipped, len(table)))
        num_skipped -= len(table) - len(rows)
        waiting.append((epoch, rows))
        num_waiting += len(rows)
        while num_waiting >= size:
            yield _take_first(waiting, size)
            num_waiting -= size
    if num_waiting:
        yield _take_first(waiting, num_waiting)


def _until(tables: Iterator[pa.Table], end: int) -> Iterator[pa.Table]:
    """Yield the tables to before row `end`, from 0, or to the last one for TO_END."""
    for table in tables:
        yield table if end == TO_END else table.slice(0, end)
        if end != TO_END:
            end -= min(end, len(table))
            if not end:
                return


def _take_first(waiting: deque[tuple[int, pa.Table]], size: int) -> list[tuple[int, pa.Table]]:
    """Remove and return `size` rows from the front."""
    parts = []
    while size:
        epoch, table = waiting.popleft()
        parts.append((epoch, table.slice(0, size)))
        if len(table) > size:
            waiting.appendleft((epoch, table.slice(size)))
        size -= len(parts[-1][1])
    return parts
