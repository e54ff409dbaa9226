"""What every input format offers: its groups, checked and typed, in the order in which they are read.

Shape legend: N groups as they stand in the files, G good ones among them, S samples of these.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from easyrec_mm.errors import DataError
from easyrec_mm.formats.checks import Problem


class GroupRows(NamedTuple):
    """The good ones of N groups.

    fields        field name -> [S], of the field's dtype: labels (float32) and the fields that were asked for
    image_path    string [G]
    group_size    int64 [G]
    kept          int64 [G], ascending: which of the N groups each is
    refused       int64 [N - G], ascending: which of them are left out
    evidence      string [N - G], of which `Source.explain` tells what is wrong
    """

    fields: dict[str, tf.Tensor]
    image_path: tf.Tensor
    group_size: tf.Tensor
    kept: tf.Tensor
    refused: tf.Tensor
    evidence: tf.Tensor


class Chunk(NamedTuple):
    """N groups and where they come from.

    epoch  int64 [N]
    file   int64 [N], index into `Source.files`
    row    int64 [N], from 1
    """

    epoch: tf.Tensor
    file: tf.Tensor
    row: tf.Tensor
    groups: GroupRows


class TextGroup(NamedTuple):
    """One group as texts: of each label and field an entry a sample; "" where a value is missing."""

    size: int
    image: bytes
    values: dict[str, list[str]]


@dataclass(frozen=True)
class Order:
    """How the groups of an epoch are shuffled: not at all, or files and groups, by the seed and the epoch alone."""

    is_shuffled: bool
    seed: int
    buffer_size: int


class Source(Protocol):
    """The groups of some files."""

    files: list[str]

    @property
    def chunk_size(self) -> int:
        """Groups that are parsed at once, at least: operations on one small batch cost more than its work."""

    @property
    def counts_at_once(self) -> bool:
        """Whether `count` need not read the files."""

    def records(self, num_epochs: int, num_skipped: int, size: int) -> tf.data.Dataset:
        """Groups as they stand in the files, `size` at a time, for `parse`.

        Args:
          num_epochs: times the files are read; 0 means without end.
          num_skipped: groups to leave out at the start.
          size: groups in an element; the last has what is left.
        """

    def parse(self, *element: Any) -> Chunk:
        """An element of `records` -> its groups, checked; within a graph."""

    def explain(self, evidence: bytes) -> Problem:
        """What is wrong with a group that `parse` refused."""

    def count(self, files: Sequence[int]) -> int:
        """Groups in some files, by their index."""

    def texts(self) -> Iterator[tuple[str, int, TextGroup | Problem]]:
        """(file, row, group or what is wrong with it) of one epoch, as it stands in the files. Slow, for few."""

    def failure(self, error: tf.errors.OpError) -> DataError | None:
        """The file that an error of `records` comes from, and why; None if all can be read."""

    def check_whole(self, stop: threading.Event) -> None:
        """Look for a file that breaks off where reading takes it to end; gives up once `stop` is set.

        Raises:
          DataError: naming it.
        """


def iterate(dataset: tf.data.Dataset, source: Source) -> Iterator[Any]:
    """Iterate a dataset of a source's records; an error of a file becomes a DataError that names it."""
    options = tf.data.Options()
    # Its thread sometimes misses that an iterator ends and keeps it waiting for up to a minute (TensorFlow 2.21).
    # Nothing is left to it anyway: all numbers of threads and buffers are given.
    options.autotune.enabled = False
    try:
        yield from dataset.with_options(options)
    except tf.errors.OpError as error:
        failure = source.failure(error)
        if failure:
            raise failure from error
        raise
