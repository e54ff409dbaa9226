"""Turns files into batches: finds the files, reads them in an order from a position, and loads pictures ahead.

The order of the data depends only on the config's seed and the epoch. A training that resumes from a checkpoint
therefore continues reading where it stopped: it skips the batches that it has trained, at the speed of reading lines.
Of several workers, each reads its share of all batches, or files of its own (own_files.py).

ChunkReader (chunks.py) reads batches of rows; BatchLoader (loading.py) adds pixels and stored vectors to them.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import cached_property, partial
from itertools import count
from typing import Any

import tensorflow as tf

from easyrec_mm.data.arrivals import Arrivals
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import Batch, InputBatch
from easyrec_mm.data.chunks import ChunkReader, of_all_workers
from easyrec_mm.data.contents import contents_of, described
from easyrec_mm.data.group_counts import count_groups, estimate_groups
from easyrec_mm.data.loading import BatchLoader, Pending
from easyrec_mm.data.own_files import OwnFiles, meet
from easyrec_mm.data.packed_pictures import find_tars
from easyrec_mm.data.picture_reader import picture_reader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.data.vector_bank import NO_BANKS, Banks
from easyrec_mm.files import FileInfo
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.files.waiting import waiting
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.formats.pieces import divide
from easyrec_mm.formats.source import Order, Share, iterate
from easyrec_mm.formats.sources import Selection, open_source
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Schema
from easyrec_mm.store.feature_vectors import VectorStores
from easyrec_mm.tasks import Task


class Input:
    """The batches of an input's files.

    Args:
      data: the config's data section.
      schema: meaning of a row.
      path: files, separated by commas; each may be a glob.
      setting: the config path of `path`, for messages.
      bad_records: counts bad groups and pictures.
      training: whether to read for training: in the shuffled order and batch size of training, else in file order.
      labels: label fields to read, by default all; () for prediction.
      kept_fields: further input fields to return in addition to the batch.
      vectors: stores of the vectors that features name by key; by default the current vectors of these stores.
      worker: number of this worker, and number of all workers; each reads its share of every global batch, or in a
        training with `data_config.file_shard` files of its own.
      exchange: gives a text of this worker to all, and returns those of all; needed for files of their own.
      task: reads only this task's part of the files, once; the groups of a batch are of one file then, so that the
        batches of all tasks are, one behind the other, those of a single one.

    Attributes:
      setting, vectors: as above.
      source: the groups in the files.
      own_files: what the workers have told each other if each reads files of its own; otherwise None.
      tars: the tars of packed pictures, for `picture_reader`.

      Raises:
        DataError: if a path matches no file, or a file cannot be read.
        StoreError: if a store of vectors cannot be used.
    """

    def __init__(
        self,
        data: DatasetConfig,
        schema: Schema,
        path: str,
        setting: str,
        bad_records: BadRecords,
        training: bool = False,
        labels: tuple[str, ...] | None = None,
        kept_fields: tuple[str, ...] = (),
        vectors: VectorStores | None = None,
        worker: tuple[int, int] = (0, 1),
        exchange: Callable[[str], list[str]] | None = None,
        task: Task | None = None,
    ) -> None:
        self._data, self._schema = data, schema
        self._training = training
        self._bad_records = bad_records
        self._labels = schema.labels if labels is None else labels
        self._kept_fields = kept_fields
        self._share = Share(*worker, self.batch_size)
        selection = _selection(data, schema, training, self._labels, kept_fields, worker)
        self.setting = setting
        with waiting(lambda: f"the files of {setting}"):
            self.source, self._files = open_source(data, schema, path, setting, selection)
        self._pieces = None
        if task is not None:
            sizes = [info.size for info in self._files.infos]
            counted = partial(count_groups, self.source, setting=setting)
            self._pieces = divide(sizes, counted, task, self.batch_size)
        self.own_files = self._meet(exchange) if selection.worker else None
        self.tars: dict[str, FileInfo] = {}
        if data.packed_images and schema.uses_image and isinstance(self._files, DataFiles):
            self.tars = find_tars(self._files)
        self.vectors = vectors or VectorStores(schema.in_stores())

    @property
    def batch_size(self) -> int:
        """Return the number of groups per batch of one worker."""
        return self._data.batch_size if self._training else self._data.eval_batch_size or self._data.batch_size

    @property
    def global_batch_size(self) -> int:
        """Return the number of groups per batch of all workers."""
        return self.batch_size * self._share.num_workers

    def fingerprint(self, with_contents: bool = True, with_order: bool = True) -> int:
        """Return a number that changes with the files and with the settings that determine the order of their groups.

        Args:
          with_contents: whether other contents of the same size change it; some parts of each file stand for it.
          with_order: whether these settings change it.
        """
        parts = [f"{info.path}:{info.size}" for info in self._files.infos]
        if with_contents:
            parts = [part + self._contents.get(file, "") for file, part in enumerate(parts)]
        if with_order:
            data = self._data
            parts += [str(v) for v in (data.shuffle, self.source.order.num_shuffled, data.seed)]
        return zlib.crc32("\n".join(parts).encode())

    def described_files(self) -> list[str]:
        """Return path, size and what stands for the content of each file, in the order in which they are read."""
        return described(self._files.infos, self._contents)

    def batches(
        self,
        num_epochs: int = 1,
        num_skipped: int = 0,
        first_step: int = 0,
        first_epoch: int = 0,
        banks_of: Callable[[int], Banks] = lambda step: NO_BANKS,
    ) -> Generator[InputBatch, None, None]:
        """Yield batches in order, parsed and with pictures loaded ahead.

        Args:
          num_epochs: how often the files are read; 0 means without end.
          num_skipped: number of groups of all workers to leave out at the start of the first epoch.
          first_step: the step that trains the first batch; a batch without samples is not a step.
          first_epoch: the epoch to begin with; earlier ones are not read.
          banks_of: step -> the banks that save encoding at that step.

        Raises:
          DataError: if a file cannot be read to its end, or more records are bad than allowed.
        """
        arrivals = Arrivals(self.setting, self.source.files)
        rows = self._rows(num_epochs, num_skipped, first_epoch)
        yield from arrivals.awaited(self._batches(rows, first_step, banks_of, arrivals))

    def _rows(self, num_epochs: int, num_skipped: int, first_epoch: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of each batch; arguments as for `batches`."""
        if self.own_files is None:
            yield from iterate(self.dataset(num_epochs, num_skipped, first_epoch), self.source)
            return
        for epoch in range(first_epoch, num_epochs) if num_epochs else count(first_epoch):
            sizes = self.own_files.epoch
            place = sizes.place(num_skipped)
            batches = self._chunks.batches_of_epoch(epoch, place, sizes.num_batches(place))
            rows_of_batches = iterate(batches.prefetch(self._data.prefetch_size), self.source)
            for rows, size in zip(rows_of_batches, sizes.sizes_of_batches(place), strict=True):
                yield of_all_workers(rows, size)
            num_skipped = 0

    def _batches(
        self,
        rows_of_batches: Iterator[dict[str, Any]],
        first_step: int,
        banks_of: Callable[[int], Banks],
        arrivals: Arrivals,
    ) -> Generator[InputBatch, None, None]:
        pending: deque[Pending] = deque()
        stop = threading.Event()
        with DaemonPool(self._num_threads + 1, "pictures") as pool:
            whole_check = pool.submit(self.source.check_whole, stop, self.files_read())
            try:
                step = first_step
                for rows, epochs_done in _with_epochs_done(rows_of_batches):
                    pending.append(self._loader.begin(rows, epochs_done, step, banks_of(step), pool))
                    arrivals.begun(rows["origin"])
                    # Other workers may have samples.
                    step += len(rows["sample_image"]) > 0 or self._share.num_workers > 1
                    if whole_check.done():
                        whole_check.result()
                    if len(pending) > self._data.prefetch_size:
                        yield self._finished(pending.popleft(), arrivals)
                while pending:
                    yield self._finished(pending.popleft(), arrivals)
                whole_check.result()
                self._files.require_unchanged()
            finally:
                stop.set()
                pool.cancel()
                self._loader.forget()
        self._bad_records.check_all()

    def _finished(self, pending: Pending, arrivals: Arrivals) -> InputBatch:
        """Return a batch; the last one of an epoch only if the epoch has no more bad records than allowed."""
        batch = self._loader.finish(pending)
        arrivals.finished()
        if batch.epochs_done > batch.epochs_before:
            self._files.require_unchanged()
            self._bad_records.check_all()
        return batch

    def is_up_to_date(self) -> bool:
        """Return whether the files are still those found at first; see Files.is_up_to_date."""
        return self._files.is_up_to_date()

    def estimate_groups(self) -> tuple[int, bool]:
        """Return the number of groups in the files, and whether it is exact; see estimate_groups."""
        if self.own_files is not None:
            return self.own_files.epoch.total, True
        return estimate_groups(self.source, [info.size for info in self._files.infos], self.setting)

    def files_read(self) -> list[int]:
        """Return the indices of the files that are read, in part or whole."""
        if self._pieces is None:
            return self.source.order.files_of(len(self.source.files))
        return [piece.file for piece in self._pieces]

    def num_batches(self, num_groups: int) -> int:
        """Return the number of global batches with the last so many groups of all epochs, which may share a batch."""
        if self.own_files is not None:
            return self.own_files.epoch.num_batches_of(num_groups)
        size = self.global_batch_size
        return num_groups // size if self._drops_remainder else -(-num_groups // size)

    def batches_per_epoch(self, num_groups: int) -> float:
        """Return the mean number of global batches of an epoch with that many groups."""
        return self.own_files.epoch.num_batches() if self.own_files else num_groups / self.global_batch_size

    def _meet(self, exchange: Callable[[str], list[str]] | None) -> OwnFiles:
        """Return what the workers tell each other of their own files."""
        own = self.files_read()
        num_groups = count_groups(self.source, own, self.setting)
        contents = contents_of(self._files.infos, self.setting, own)
        return meet(self._share.number, num_groups, contents, self.batch_size, self._drops_remainder, exchange)

    @cached_property
    def _contents(self) -> Mapping[int, str]:
        """Return what stands for the content of each file."""
        return self.own_files.contents if self.own_files else contents_of(self._files.infos, self.setting)

    def spec(self) -> Batch:
        """Return the shapes and dtypes of the batches, for tf.function; see BatchLoader.spec."""
        return self._loader.spec()

    def kept_specs(self) -> dict[str, tf.TensorSpec]:
        """Return the shapes and dtypes of the kept fields."""
        specs: dict[str, tf.TensorSpec] = self._chunks.sample_specs()["kept_fields"]
        return specs

    # Created on first use: counting or comparing files needs no graphs, which take a second to compile.
    @cached_property
    def _chunks(self) -> ChunkReader:
        return ChunkReader(
            self.source, self._schema, self._labels, self._kept_fields, self.batch_size, self._drops_remainder,
            self._num_threads, None if self.own_files else self._share, self._pieces,
        )  # fmt: skip

    @cached_property
    def _loader(self) -> BatchLoader:
        image = self._schema.image
        pictures = PictureLoader(image, picture_reader(self._data, tars=self.tars)) if self._schema.uses_image else None
        return BatchLoader(
            self._data, self._schema, self.source, self._chunks, pictures, self.vectors, self._bad_records
        )

    @property
    def _num_threads(self) -> int:
        return self._data.num_parallel_calls or os.cpu_count() or 1

    @property
    def _drops_remainder(self) -> bool:
        return self._training and self._data.drop_remainder

    def dataset(self, num_epochs: int, num_skipped: int, first_epoch: int = 0) -> tf.data.Dataset:
        """Return a dataset of the batches without pictures, see ChunkReader; arguments as for `batches`."""
        return self._chunks.batches(num_epochs, num_skipped, first_epoch).prefetch(self._data.prefetch_size)


def _with_epochs_done(batches: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the rows of each batch and the number of epochs that are over with it, which the next batch tells."""
    previous: dict[str, Any] | None = None
    last_epoch = 0
    for rows in batches:
        first_epoch, last_epoch, *_ = rows["counts"].numpy().tolist()
        if previous is not None:
            yield previous, first_epoch
        previous = rows
    if previous is not None:
        yield previous, last_epoch + 1


def _selection(
    data: DatasetConfig,
    schema: Schema,
    training: bool,
    labels: tuple[str, ...],
    kept_fields: tuple[str, ...],
    worker: tuple[int, int],
) -> Selection:
    used = {*schema.fields_read(), *kept_fields}
    fields = tuple(name for name in schema.layout.sample_fields if name in used)
    read_labels = tuple(name for name in schema.labels if name in labels or name in kept_fields)
    order = Order(training and data.shuffle, data.seed, data.shuffle_buffer_size)
    if training and data.file_shard and worker[1] > 1:
        return Selection(read_labels, fields, order, data.batch_size, worker)
    return Selection(read_labels, fields, order, data.batch_size * worker[1])
