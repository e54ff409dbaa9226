"""Turns groups of a source into batches without pictures, entirely within TensorFlow graphs.

Groups are parsed and transformed in chunks that are larger than a small batch, because an operation costs more than its
work on a few groups; the chunks are then cut into batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import tensorflow as tf

from easyrec_mm.data.images_of_groups import images_of_groups, rows_of
from easyrec_mm.data.packing import Packing, cut
from easyrec_mm.data.stored_vectors import distinct_keys
from easyrec_mm.features.feature import text_keys
from easyrec_mm.features.tensorflow_transform import FeatureTransform
from easyrec_mm.formats.pieces import Piece
from easyrec_mm.formats.source import Chunk, Share, Source
from easyrec_mm.schema import Schema


class ChunkReader:
    """Reads batches with a fixed number of groups.

    Args:
      source: source of the groups.
      schema: meaning of the groups.
      labels: label fields to read.
      kept_fields: further input fields to return.
      batch_size: number of groups per batch.
      drops_remainder: whether to leave out the groups at the end that do not fill a global batch.
      num_threads: number of threads that read and cut.
      share: the groups that this worker reads of each global batch; by default the batches are its own.
      pieces: pieces of the files to read, whose batches have groups of one piece each; by default all files.
    """

    def __init__(
        self,
        source: Source,
        schema: Schema,
        labels: Sequence[str],
        kept_fields: Sequence[str],
        batch_size: int,
        drops_remainder: bool,
        num_threads: int,
        share: Share | None = None,
        pieces: Sequence[Piece] | None = None,
    ) -> None:
        self._source, self._schema = source, schema
        self._labels, self._kept_fields = labels, kept_fields
        self._batch_size, self._drops_remainder, self._num_threads = batch_size, drops_remainder, num_threads
        self._share = share or Share(0, 1, batch_size)
        self._pieces = pieces
        self._transform = FeatureTransform(schema.features)
        self._item_transform = FeatureTransform(schema.image_features)
        self._item_fields = tuple(dict.fromkeys(name for f in schema.item_features() for name in f.inputs))
        # Traced once, for all datasets that use these functions.
        read = tf.function(self._read, input_signature=source.record_specs, autograph=False)
        self._packing = Packing(_specs(read)["samples"])

        def read_packed(*element: Any) -> dict[str, Any]:
            chunk = read(*element)
            return {**chunk, "samples": self._packing.pack(chunk["samples"])}

        self._read_packed = tf.function(read_packed, input_signature=source.record_specs, autograph=False)
        first = tf.TensorSpec([], tf.int64)
        self._cut = tf.function(
            self._batch_of_chunk, input_signature=(_specs(self._read_packed), first), autograph=False
        )
        # The last arguments of `batches` and its dataset, which evaluations ask for again and again.
        self._last: tuple[tuple[int, int, int], tf.data.Dataset] | None = None

    def batches(self, num_epochs: int, num_skipped: int, first_epoch: int = 0) -> tf.data.Dataset:
        """Return a dataset of batches in order, see `_batch_of_chunk`.

        Args:
          num_epochs: how often the groups are read; 0 means without end; pieces are read once.
          num_skipped: number of groups to leave out at the start of the first epoch, of all workers; none of pieces.
          first_epoch: the epoch to begin with.
        """
        arguments = (num_epochs, num_skipped, first_epoch)
        if self._last is None or self._last[0] != arguments or not self._source.is_read_again:
            self._last = arguments, self._dataset(*arguments)
        return self._last[1]

    def _dataset(self, num_epochs: int, num_skipped: int, first_epoch: int) -> tf.data.Dataset:
        size = self._chunk_size * self._share.num_workers
        if self._pieces is None:
            share = self._share if self._share.num_workers > 1 else None
            records = self._source.records(num_epochs, num_skipped, size, share, first_epoch)
        else:
            records = self._source.records_of(self._pieces, size)
        return self._batches(records)

    def batches_of_epoch(self, epoch: int, first: int, num_batches: int) -> tf.data.Dataset:
        """Return a dataset of the next batches of one epoch; those behind its last group are empty.

        Args:
          epoch: the epoch.
          first: number of groups to leave out at its start.
          num_batches: number of batches.
        """
        size = self._chunk_size
        num_places = num_batches * self._batch_size
        records = self._source.records(epoch + 1, first, size, None, epoch)
        padded = records.concatenate(tf.data.Dataset.from_tensors(self._source.nothing()).repeat())

        def element(start: tf.Tensor, groups: tuple[Any, ...]) -> tuple[Any, ...]:
            # As many epochs as the batches of the element have places.
            return tf.fill([tf.minimum(num_places - start, size)], tf.constant(epoch, tf.int64)), *groups[1:]

        starts = tf.data.Dataset.range(0, num_places, size)
        return self._batches(tf.data.Dataset.zip((starts, padded)).map(element))

    @property
    def _chunk_size(self) -> int:
        """Return the number of own groups in a chunk, a multiple of the batch size."""
        return -(-self._source.chunk_size // self._batch_size) * self._batch_size

    def _batches(self, records: tf.data.Dataset) -> tf.data.Dataset:
        """Return a dataset of the batches in elements of the source."""
        chunks = records.map(self._read_packed, num_parallel_calls=self._num_threads, deterministic=True)
        places = chunks.flat_map(self._places_of_batches)
        return places.map(self._cut, num_parallel_calls=self._num_threads, deterministic=True)

    def samples(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Return a batch's features, labels, sample_weight and kept fields by these names; each is a nest by field."""
        samples: dict[str, Any] = self._packing.unpack(rows["samples"])
        return samples

    def sample_specs(self) -> dict[str, Any]:
        """Return the shapes and dtypes of what `samples` returns."""
        specs: dict[str, Any] = self._packing.specs
        return specs

    @cached_property
    def row_specs(self) -> dict[str, Any]:
        """Shapes and dtypes of a batch of `batches`."""
        specs: dict[str, Any] = _specs(self._cut)
        return specs

    def _read(self, *element: Any) -> dict[str, Any]:
        """Parse an element of the source to its valid groups, transformed, in the order of the file."""
        chunk: Chunk = self._source.parse(*element)
        groups = chunk.groups
        first_sample = tf.cumsum(groups.group_size, exclusive=True)  # [G]
        of_groups = {n: tf.gather(groups.fields[n], first_sample) for n in self._item_fields}
        of_items = self._item_transform(of_groups)
        # The name of a field is "" if the data do not have it.
        per_group = {self._schema.image.field: groups.image_path, self._schema.group_size_field: groups.group_size}
        kept_fields = {
            name: tf.repeat(per_group[name], groups.group_size) if name in per_group else groups.fields[name]
            for name in self._kept_fields
        }
        num_samples = tf.reduce_sum(groups.group_size)
        weight = groups.fields.get(self._schema.sample_weight or "")
        return {
            "samples": {
                "features": self._transform(groups.fields),
                "labels": {name: groups.fields[name] for name in self._labels},
                "sample_weight": tf.ones([num_samples]) if weight is None else tf.cast(weight, tf.float32),
                "kept_fields": kept_fields,
            },
            "keys": {
                f.name: text_keys(f, groups.fields, self._transform.back_end) for f in self._schema.stored_features()
            },
            "groups": {
                "image_path": groups.image_path,
                "group_size": groups.group_size,
                "record": groups.kept_groups,
                "image_features": {f.name: of_items[f.name] for f in self._schema.image_features},
                "contents": {
                    kind: text_keys(feature, of_groups, self._transform.back_end)
                    for kind, feature in self._schema.contents.items()
                },
                "image_labels": {
                    name: tf.gather(groups.fields[name], first_sample)
                    for name, _ in self._schema.image_labels
                    if name in self._labels
                },
            },
            "first_sample": tf.concat([first_sample, [num_samples]], 0),  # [G + 1]
            "refused": {"record": groups.refused, "evidence": groups.evidence},
            "records": {"epoch": chunk.epoch, "file": chunk.file, "row": chunk.row},
        }

    def _places_of_batches(self, chunk: dict[str, Any]) -> tf.data.Dataset:
        """Return a dataset of (chunk, first own record) for each batch in a chunk."""
        size, global_size = tf.size(chunk["records"]["epoch"], tf.int64), self._batch_size * self._share.num_workers
        num_batches = size // global_size if self._drops_remainder else -(-size // global_size)
        starts = tf.data.Dataset.range(0, num_batches * self._batch_size, self._batch_size)
        return tf.data.Dataset.zip((tf.data.Dataset.from_tensors(chunk).repeat(), starts))

    def _batch_of_chunk(self, chunk: dict[str, Any], first: tf.Tensor) -> dict[str, Any]:
        """Cut out the batch of `batch_size` own records from `first` on.

        Returns:
          samples  the argument of `samples`
          keys     feature name -> its distinct keys, see stored_vectors
          origin   int64 [3, G]: file, row and number of samples of the valid groups
          refused  evidence, file and row of the records that are not valid groups
          counts   int64 [6]: epochs of the first and the last record of the global batch, number of its records,
                   number of own records, number of own refused records, number of records of the first epoch
          and the values that `images_of_groups` returns
        """
        places = limits = tf.stack([first, first + self._batch_size])
        if self._drops_remainder and self._share.num_workers == 1:
            # The last batch of an epoch of own groups.
            limits = tf.minimum(
                limits, tf.size(chunk["records"]["row"], tf.int64) // self._batch_size * self._batch_size
            )
        group_limits = tf.searchsorted(chunk["groups"]["record"], limits, out_type=tf.int64)
        refused_limits = tf.searchsorted(chunk["refused"]["record"], limits, out_type=tf.int64)
        refused = cut(chunk["refused"], refused_limits)
        origin = {"file": chunk["records"]["file"], "row": chunk["records"]["row"]}
        own_limits, epoch = tf.minimum(limits, tf.size(origin["row"], tf.int64)), chunk["records"]["epoch"]
        global_limits = tf.minimum(places * self._share.num_workers, tf.size(epoch, tf.int64))
        epochs = tf.gather(epoch, [global_limits[0], global_limits[1] - 1])
        sample_limits = tf.gather(chunk["first_sample"], group_limits)
        groups = cut(chunk["groups"], group_limits)
        return {
            "origin": tf.stack([*rows_of(origin, groups["record"]).values(), groups["group_size"]]),
            "samples": self._packing.cut(chunk["samples"], sample_limits),
            "keys": {name: distinct_keys(keys) for name, keys in cut(chunk["keys"], sample_limits).items()},
            **images_of_groups(self._schema, groups, origin),
            "refused": {"evidence": refused["evidence"], **rows_of(origin, refused["record"])},
            # In one tensor, because the loop spends time on each tensor.
            "counts": tf.concat(
                [
                    epochs,
                    [span[1] - span[0] for span in (global_limits, own_limits, refused_limits)],
                    tf.math.count_nonzero(tf.equal(epoch[global_limits[0] : global_limits[1]], epochs[0]))[None],
                ],
                0,
            ),
        }


def of_all_workers(rows: dict[str, Any], num_groups: int) -> dict[str, Any]:
    """Return a batch of `ChunkReader.batches_of_epoch` with the number of groups in the batches of all workers."""
    counts = rows["counts"].numpy()
    counts[[2, 5]] = num_groups  # all of them are of one epoch
    return {**rows, "counts": tf.constant(counts)}


def _specs(function: tf.types.experimental.PolymorphicFunction) -> Any:
    """Return the shapes and dtypes of what a function with an input signature returns."""
    outputs = function.get_concrete_function().structured_outputs
    return tf.nest.map_structure(tf.type_spec_from_value, outputs)
