"""Files with one record per group, text lines or TFRecords: reads them in an order, and finds the broken ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.errors import DataError, tensorflow_reason
from easyrec_mm.files import place_of
from easyrec_mm.files.waiting import reading, reading_each
from easyrec_mm.formats.data_files import NUM_AHEAD, DataFiles, needs_copy
from easyrec_mm.formats.gzip_files import first_truncated
from easyrec_mm.formats.pieces import Piece
from easyrec_mm.formats.source import Order, Share

# Number of files read in parallel when groups are shuffled. Fixed, because it determines the order of the groups.
NUM_OPEN_FILES = 4
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass
class RecordFiles:
    """The records of files; each record is bytes.

    Args:
      data_files: the files.
      open_file: path and compression type -> dataset of the file's records.
      order: order of the records in an epoch.

    Raises:
      DataError: if a file cannot be opened.
    """

    data_files: DataFiles
    open_file: Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]
    order: Order
    chunk_size = 256
    is_read_again = True
    counts_at_once = False

    def __post_init__(self) -> None:
        self.files = self.data_files.names
        self._read_files = self.order.files_of(len(self.files))
        # Of the files that are read; the others are not opened.
        self._compressions = [""] * len(self.files)
        for index, compression in zip(self._read_files, self._find_compressions(), strict=True):
            self._compressions[index] = compression
        self._is_copied = any(needs_copy(file) for file in self.files)
        self._copies_checked: set[str] = set()
        self._failure: DataError | None = None

    @property
    def record_specs(self) -> tuple[tf.TensorSpec, ...]:
        """See Source.record_specs."""
        number = tf.TensorSpec([None], tf.int64)
        return number, number, number, tf.TensorSpec([None], tf.string)

    def records(
        self, num_epochs: int, num_skipped: int, size: int, share: Share | None = None, first_epoch: int = 0
    ) -> tf.data.Dataset:
        """Return a dataset of (epoch, index of the file, row from 1, record), each `[size]`; see Source.records."""
        epochs = tf.data.Dataset.range(first_epoch, num_epochs or tf.int64.max)
        is_single = num_epochs == 1 and not first_epoch
        records = self._epoch(tf.constant(0, tf.int64)) if is_single else epochs.flat_map(self._epoch)
        batches = records.skip(num_skipped).batch(size) if num_skipped else records.batch(size)

        def element(origin: tuple[tf.Tensor, tf.Tensor], row: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, ...]:
            epoch, *own = *origin, row, record
            if share is not None:
                is_own = share.is_own(tf.range(tf.size(epoch)))
                own = [tf.boolean_mask(values, is_own) for values in own]
            return epoch, *own

        return batches.map(element)

    def records_of(self, pieces: Sequence[Piece], size: int) -> tf.data.Dataset:
        """See Source.records_of."""

        def read(index: tf.Tensor, then: tf.Tensor, first: tf.Tensor, end: tf.Tensor) -> tf.data.Dataset:
            records = self._records_of_file(tf.constant(0, tf.int64), index, then)
            return records.take(end).skip(first).batch(size)

        file, first, end = (tf.constant([piece[i] for piece in pieces], tf.int64) for i in range(3))
        places = tf.data.Dataset.from_tensor_slices((*self._with_next(file), first, end))
        return places.flat_map(read).map(lambda origin, row, record: (*origin, row, record))

    def nothing(self) -> tuple[tf.Tensor, ...]:
        """See Source.nothing."""
        return tuple(tf.zeros([0], spec.dtype) for spec in self.record_specs)

    def read(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (file, row from 1, record) of one epoch without shuffling.

        Raises:
          DataError: if a file cannot be read.
        """
        try:
            for index in self._read_files:
                file = self.files[index]
                opened = self.open_file(self._opened_at(index), self._compressions[index])
                for row, record in enumerate(reading_each(file, opened.as_numpy_iterator()), 1):
                    yield file, row, record
        except tf.errors.OpError as error:
            raise self.failure(error) or error from error

    def count(self, files: Sequence[int]) -> int:
        """See Source.count."""
        order = tf.constant(files, tf.int64)
        records = tf.data.Dataset.from_tensor_slices(self._with_next(order)).flat_map(self._open)
        return sum(len(batch) for batch in records.batch(1 << 12))

    def failure(self, error: tf.errors.OpError) -> DataError | None:
        """See Source.failure; the error names the file and the last row that can be read."""
        if self._failure:
            return self._failure
        for index in self._read_files:
            file, num_read = self.files[index], 0
            try:
                for _ in self.open_file(self._opened_at(index), self._compressions[index]):
                    num_read += 1
            except tf.errors.OpError as file_error:
                problem = tensorflow_reason(file_error.message)
                return DataError(f"{file}: cannot be read to its end: {problem}, after row {num_read}")
        return None

    def check_whole(self, stop: threading.Event, files: Collection[int]) -> None:
        """See Source.check_whole; finds truncated gzip files, which TensorFlow reads without an error."""
        packed = [self.files[i] for i in files if self._compressions[i] and not needs_copy(self.files[i])]
        _require_whole(first_truncated(packed, stop))

    def _epoch(self, epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.constant(self._read_files, tf.int64)
        if self.order.is_shuffled:
            seed = tf.stack([tf.constant(self.order.seed, tf.int64), epoch])
            order = tf.random.experimental.stateless_shuffle(order, seed)

        def read_file(index: tf.Tensor, then: tf.Tensor) -> tf.data.Dataset:
            return self._records_of_file(epoch, index, then)

        files = tf.data.Dataset.from_tensor_slices(self._with_next(order))
        if not self.order.is_shuffled:
            return files.flat_map(read_file)
        open_files = min(NUM_OPEN_FILES, len(self._read_files))
        records = files.interleave(read_file, open_files, num_parallel_calls=open_files, deterministic=True)
        seed = tf.constant(self.order.seed, tf.int64) + epoch
        return records.shuffle(self.order.buffer_size, seed=seed, reshuffle_each_iteration=False)

    def _records_of_file(self, epoch: tf.Tensor, index: tf.Tensor, then: tf.Tensor) -> tf.data.Dataset:
        """Return a dataset of ((epoch, index), row, record) of one file; `then` is that of `_open`."""
        rows = tf.data.Dataset.range(1, tf.int64.max)
        # Zipped instead of mapped, because calling a function takes longer than reading a record.
        origin = tf.data.Dataset.from_tensors((epoch, index)).repeat()
        return tf.data.Dataset.zip((origin, rows, self._open(index, then)))

    def _with_next(self, order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the indices of files in the order of opening, `[N]`, and of the files that follow `[N, NUM_AHEAD]`."""
        return order, tf.stack([tf.roll(order, -i, 0) for i in range(1, NUM_AHEAD + 1)], 1)

    def _open(self, index: tf.Tensor, then: tf.Tensor) -> tf.data.Dataset:
        """Return the records of a file; `then` contains the indices of the files that are opened next."""
        path = tf.constant(self.files)[index]
        if self._is_copied:
            path = tf.numpy_function(self._fetched, [index, then], tf.string)
            path.set_shape([])
        return self.open_file(path, tf.constant(self._compressions)[index])

    def _fetched(self, index: int, then: NDArray[np.int64]) -> bytes:
        try:
            path = self._opened_at(index)
            self.data_files.fetch_ahead([self.files[i] for i in then], by_tensorflow=True)
            return path.encode()
        except DataError as error:
            self._failure = error
            raise

    def _opened_at(self, index: int) -> str:
        """Return a path at which TensorFlow can read a file; a new copy of a gzip file is first checked to be whole."""
        file = self.files[index]
        path = self.data_files.opened_at(file, by_tensorflow=True)
        if path != file and self._compressions[index] and file not in self._copies_checked:
            _require_whole(first_truncated([path], threading.Event()) and file)
            self._copies_checked.add(file)
        return path

    @property
    def _read_names(self) -> list[str]:
        """Return the paths of the files that are read."""
        return [self.files[i] for i in self._read_files]

    def _find_compressions(self) -> list[str]:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(_compression, self._read_names))


def _require_whole(truncated: str | None) -> None:
    if truncated:
        raise DataError(f"{truncated}: cannot be read to its end: the gzip file is truncated; write it again")


def _compression(file: str) -> str:
    """Return TensorFlow's compression type of a file, according to its first bytes."""
    if needs_copy(file):
        return "GZIP" if place_of(file).start(file, 2) == _GZIP_MAGIC else ""
    try:
        with reading(file), tf.io.gfile.GFile(file, "rb") as stream:
            return "GZIP" if stream.read(2) == _GZIP_MAGIC else ""
    except tf.errors.OpError as error:
        raise DataError(f"{file}: cannot be read: {error.message}") from error
