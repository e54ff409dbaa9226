"""The interface of all input formats: checked and typed groups, in the order in which they are read.

Shape legend: N groups as the files contain them, G valid groups among them, S samples of the valid groups.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from easyrec_mm.errors import DataError
from easyrec_mm.files import FileInfo
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.pieces import Piece
from easyrec_mm.formats.typed_groups import TextGroup

# Number of groups that `Source.texts` reads at once.
TEXT_GROUPS = 256


class GroupRows(NamedTuple):
    """The valid groups among N groups.

    fields        field name -> [S], of the field's dtype: labels (float32) and the other fields to read
    image_path    string [G]
    group_size    int64 [G]
    kept_groups   int64 [G], ascending: index of each valid group among the N groups
    refused       int64 [N - G], ascending: indices of the groups that are left out
    evidence      string [N - G], from which `Source.explain` determines the problem of each refused group
    """

    fields: dict[str, tf.Tensor]
    image_path: tf.Tensor
    group_size: tf.Tensor
    kept_groups: tf.Tensor
    refused: tf.Tensor
    evidence: tf.Tensor


class Chunk(NamedTuple):
    """N groups and their origin.

    epoch  int64 [N], or those of all workers' groups if these are a worker's share
    file   int64 [N], index into `Source.files`
    row    int64 [N], from 1
    """

    epoch: tf.Tensor
    file: tf.Tensor
    row: tf.Tensor
    groups: GroupRows


# Least number of batches that are shuffled at a time of flat rows.
FLAT_BUFFER_BATCHES = 16


@dataclass(frozen=True)
class Order:
    """How an epoch is read: as the files are, or files and groups in an order that depends only on the seed and epoch.

    is_shuffled  whether they are shuffled
    seed         the seed
    buffer_size  number of groups that are shuffled at a time
    files        indices of the files that are read; None for all
    flat_batch   of flat rows, the number of rows in a batch, FLAT_BUFFER_BATCHES of which are shuffled at a time at
                 least, so that several rows of a picture come together; 0 for groups
    """

    is_shuffled: bool
    seed: int
    buffer_size: int
    files: tuple[int, ...] | None = None
    flat_batch: int = 0

    @property
    def num_shuffled(self) -> int:
        """Return the number of groups or rows that are shuffled at a time."""
        return max(self.buffer_size, FLAT_BUFFER_BATCHES * self.flat_batch)

    def files_of(self, num_files: int) -> list[int]:
        """Return the indices of the files that are read, of `num_files` files."""
        return list(range(num_files) if self.files is None else self.files)


@dataclass(frozen=True)
class Share:
    """The groups that one of several workers reads: of each global batch, the `size` groups at its place.

    The order of the groups does not depend on the number of workers, and each group belongs to one of them.

    number       number of the worker, from 0
    num_workers  number of workers
    size         number of groups of a batch of one worker
    """

    number: int
    num_workers: int
    size: int

    def is_own(self, places: Any) -> Any:
        """Return which groups are read by this worker, for their places in the global order, an array or a tensor."""
        return places // self.size % self.num_workers == self.number


class Files(Protocol):
    """An input's files, or the slices of its tables, as they were when they were found."""

    @property
    def infos(self) -> list[FileInfo]:
        """Return the files with their sizes and versions, in the order of `Source.files`."""

    def is_up_to_date(self) -> bool:
        """Return whether they are still as they were when they were found.

        Raises:
          DataError: if they cannot be found any more.
        """

    def require_unchanged(self) -> None:
        """Check that nothing has changed that could have been read in a different state.

        Raises:
          DataError: if a file has changed; the message names it.
        """


class Source(Protocol):
    """The groups in an input's files, which are read in an order.

    Only the files of `order` are opened, whose indices are those in `files`.
    """

    files: list[str]
    order: Order

    @property
    def chunk_size(self) -> int:
        """Return the least number of groups to parse at once: operations on a small batch cost more than their work."""

    @property
    def is_read_again(self) -> bool:
        """Return whether a dataset of `records` can be iterated again, and then reads the files again."""

    @property
    def counts_at_once(self) -> bool:
        """Return whether `count` works without reading the files."""

    @property
    def record_specs(self) -> tuple[Any, ...]:
        """Return the shapes and dtypes of an element of `records`."""

    def records(
        self, num_epochs: int, num_skipped: int, size: int, share: Share | None = None, first_epoch: int = 0
    ) -> tf.data.Dataset:
        """Return a dataset of groups as the files contain them, for `parse`.

        Args:
          num_epochs: how often the files are read; 0 means without end.
          num_skipped: number of groups to leave out at the start of the first epoch.
          size: number of groups per element; the last element has the remaining ones.
          share: the groups of each element that are kept, by their places in it; by default all. The epochs of all are
            kept.
          first_epoch: the epoch to begin with; earlier ones are not read.
        """

    def records_of(self, pieces: Sequence[Piece], size: int) -> tf.data.Dataset:
        """Return a dataset like `records` of these pieces, read once, without shuffling.

        An element has `size` groups of one piece; the last element of each piece has the remaining ones.
        """

    def nothing(self) -> tuple[Any, ...]:
        """Return an element of `records` without groups."""

    def parse(self, *element: Any) -> Chunk:
        """Parse an element of `records`, and return its checked groups; runs within a graph."""

    def explain(self, evidence: bytes) -> Problem | None:
        """Return what is wrong with a group that `parse` refused; None for an empty line, which is no group."""

    def count(self, files: Sequence[int]) -> int:
        """Return the number of groups in the files with these indices."""

    def texts(self) -> Iterator[tuple[str, int, TextGroup | Problem]]:
        """Yield (file, row, group or its problem) of one epoch, in file order; slow, meant for few groups."""

    def failure(self, error: tf.errors.OpError) -> DataError | None:
        """Return an error with the file and the reason of an error of `records`; None if all files can be read."""

    def check_whole(self, stop: threading.Event, files: Collection[int]) -> None:
        """Look, among the files with these indices, for a truncated one that reading takes for complete.

        Args:
          stop: once it is set, this gives up.
          files: indices of files.

        Raises:
          DataError: if a file is truncated; the message names it.
        """


def iterate(dataset: tf.data.Dataset, source: Source) -> Iterator[Any]:
    """Iterate over a dataset of a source's records; an error in a file becomes a DataError that names the file."""
    options = tf.data.Options()
    # The autotuning thread sometimes misses the end of an iterator, and delays it for up to a minute (TensorFlow 2.21).
    # It is not needed anyway, because the numbers of threads and the sizes of buffers are all given.
    options.autotune.enabled = False
    # What they could rewrite is not in our datasets, and looking for it takes longer than all else that starts a pass.
    options.experimental_optimization.apply_default_optimizations = False
    try:
        yield from dataset.with_options(options)
    except tf.errors.OpError as error:
        failure = source.failure(error)
        if failure:
            raise failure from error
        raise
