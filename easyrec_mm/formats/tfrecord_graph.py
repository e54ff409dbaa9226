"""The TFRecord format: one tf.train.Example per group, in which a feature contains one value per sample.

    INT32, INT64, BOOL   int64_list
    FLOAT, DOUBLE        float_list
    STRING               bytes_list

Group-level values (image path, group size, fields of features with per_group) may be stored as a single value.

Nearly always all groups of a chunk are valid. TensorFlow operations confirm this in a fraction of the time that reading
the groups as a table takes; if some are invalid, tfrecord.py reads them again, and typed_groups.py determines which
ones are invalid, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.errors import DataError, tensorflow_reason
from easyrec_mm.features.tensorflow_back_end import split_texts
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.formats.group_tensors import GROUP_DTYPES, GroupTensors, as_arrays
from easyrec_mm.formats.grouped_table import batched
from easyrec_mm.formats.record_files import RecordFiles
from easyrec_mm.formats.rtp_graph import are_ascii, are_utf8, matches
from easyrec_mm.formats.source import TEXT_GROUPS, Chunk, GroupRows, Order
from easyrec_mm.formats.tfrecord import read_examples
from easyrec_mm.formats.typed_groups import TextGroup, TypedGroups, text_groups
from easyrec_mm.schema import Schema


class GroupTfRecordSource(RecordFiles):
    """A Source of the groups in TFRecord files.

    Args:
      files: TFRecord files, with or without gzip.
      schema: fields and tasks.
      labels: label fields to read.
      fields: other fields to read.
      order: order of the records in an epoch.

    Raises:
      DataError: if a file cannot be read, no file contains a record, or the first record lacks a feature or has one of
        another type.
    """

    def __init__(
        self, files: DataFiles, schema: Schema, labels: tuple[str, ...], fields: tuple[str, ...], order: Order
    ) -> None:
        super().__init__(files, tf.data.TFRecordDataset, order)
        self._schema = schema
        self._groups = TypedGroups(schema, labels, fields)
        self._dtypes = {name: GROUP_DTYPES[schema.field(name).dtype] for name in (*labels, *fields)}
        if schema.image.field:
            self._dtypes[schema.image.field] = tf.string
        self._group_fields = {schema.image.field, schema.group_size_field, *schema.group_fields}
        if self._first_has_size():
            self._dtypes[schema.group_size_field] = tf.int64

    def parse(self, epoch: tf.Tensor, file: tf.Tensor, row: tf.Tensor, records: tf.Tensor) -> Chunk:
        """See Source.parse."""
        columns = tf.io.parse_example(records, self._features)
        size = self._sizes(columns)
        groups = tf.cond(
            self._is_plain(columns, size), lambda: self._plain(columns, size), lambda: self._checked(records)
        )
        return Chunk(epoch, file, row, groups)

    def explain(self, evidence: bytes) -> Problem:
        """See Source.explain."""
        return Problem.decode(evidence)

    def texts(self) -> Iterator[tuple[str, int, TextGroup | Problem]]:
        """See Source.texts."""
        for portion in batched(self.read(), TEXT_GROUPS):
            groups = text_groups(read_examples([record for *_, record in portion], self._groups))
            yield from ((file, row, group) for (file, row, _), group in zip(portion, groups, strict=True))

    def failure(self, error: tf.errors.OpError) -> DataError | None:
        """See Source.failure; also finds a record that is not an Example or has a feature of another type."""
        failure = super().failure(error)
        if failure is None:
            for file, row, record in self.read():
                try:
                    tf.io.parse_example(tf.constant([record]), self._features)
                except tf.errors.OpError as record_error:
                    return DataError(f"{file}: record {row} cannot be read: {tensorflow_reason(record_error.message)}")
        return failure

    @property
    def _features(self) -> dict[str, tf.io.RaggedFeature]:
        return {name: tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64) for name, dtype in self._dtypes.items()}

    def _sizes(self, columns: dict[str, tf.RaggedTensor]) -> tf.Tensor:
        """Return the samples per group, int64 `[N]`: the group size, or else the length of a sample-level feature."""
        if self._schema.group_size_field in columns:
            # A missing group size becomes a number below 1, which is refused.
            return tf.reduce_max(columns[self._schema.group_size_field], axis=1)
        of_samples = [column for name, column in columns.items() if name not in self._group_fields]
        return of_samples[0].row_lengths() if of_samples else tf.ones_like(next(iter(columns.values())).row_lengths())

    def _is_plain(self, columns: dict[str, tf.RaggedTensor], size: tf.Tensor) -> tf.Tensor:
        """Return whether every group is valid."""
        checks = [tf.reduce_all(size > 0)]
        for name, column in columns.items():
            lengths, values = column.row_lengths(), column.flat_values
            is_whole = tf.reduce_all(tf.equal(lengths, size))
            if name in self._group_fields:
                is_whole |= tf.reduce_all(tf.equal(lengths, 1))
                of_first = tf.gather(values, tf.repeat(column.row_starts(), lengths))
                checks.append(tf.reduce_all(tf.equal(values, of_first)))
            checks.append(is_whole)
            if name in self._groups.labels:
                low, high, is_class = self._schema.label_range(name)
                numbers = tf.cast(values, tf.float32)
                checks.append(tf.reduce_all((numbers >= low) & (numbers <= high)))
                if is_class:
                    checks.append(tf.reduce_all(tf.equal(numbers, tf.round(numbers))))
            elif values.dtype == tf.float32:
                checks.append(tf.reduce_all(tf.abs(values) <= self._schema.largest_number(name)[0]))
            elif values.dtype == tf.string:
                patterns = self._groups.checks.patterns.get(name)
                ok = (
                    tf.equal(values, "") | matches(values, patterns)
                    if patterns
                    else are_utf8(values, are_ascii(values))
                )
                checks.append(tf.reduce_all(ok))
            elif name in self._groups.dtypes and self._schema.field(name).dtype == "bool":
                checks.append(tf.reduce_all(tf.equal(values, 0) | tf.equal(values, 1)))
        for lists in self._groups.checks.aligned:
            texts = {name: columns[name].flat_values for name in lists}
            first, *other_lengths = [split_texts(text, lists[name]).row_lengths() for name, text in texts.items()]
            for other in other_lengths:
                checks.append(tf.reduce_all(tf.equal(tf.size(first), tf.size(other))) & _all_equal(first, other))
        return tf.reduce_all(checks)

    def _plain(self, columns: dict[str, tf.RaggedTensor], size: tf.Tensor) -> GroupRows:
        """Return the groups, all of which are valid."""
        fields = {}
        for name, dtype in self._groups.dtypes.items():
            values = columns[name].flat_values
            if name in self._group_fields:
                values = tf.cond(
                    tf.equal(tf.size(values), tf.size(size)),
                    lambda v=values: tf.repeat(v, size),
                    lambda v=values: v,
                )
            if dtype == "string" and self._schema.field(name).default:
                values = tf.where(tf.equal(values, ""), self._schema.field(name).default, values)
            fields[name] = tf.cast(values, GROUP_DTYPES[dtype])
        image_path = tf.fill(tf.shape(size), "")
        if self._schema.image.field:
            image = columns[self._schema.image.field]
            image_path = tf.gather(image.flat_values, image.row_starts())
        nothing = tf.zeros([0], tf.int64)
        return GroupRows(fields, image_path, size, tf.range(tf.size(size, tf.int64)), nothing, tf.zeros([0], tf.string))

    def _checked(self, records: tf.Tensor) -> GroupRows:
        """Return the valid groups, when some groups are invalid."""

        def read(records: NDArray[np.object_]) -> list[Any]:
            return list(tf.nest.flatten(as_arrays(read_examples(records.tolist(), self._groups))))

        tensors = GroupTensors(self._groups)
        signature = tensors.signature()
        specs = tf.nest.flatten(signature)
        arrays = tf.numpy_function(read, [records], [spec.dtype for spec in specs], stateful=False)
        for array, spec in zip(arrays, specs, strict=True):
            array.set_shape(spec.shape)
        return tensors.rows(tf.nest.pack_sequence_as(signature, arrays))

    def _first_has_size(self) -> bool:
        """Check the first record, and return whether it contains the size of its group."""
        file, row, record = next(self.read(), ("", 0, b""))
        if not row:
            raise DataError(f"{', '.join(self._read_names[:3])}: no record of data; give files that hold groups")
        try:
            features = tf.train.Example.FromString(record).features.feature
        except Exception as error:  # protobuf's own exception, which has no public name
            raise DataError(
                f"{file}: record 1 is not a tf.train.Example; give files with one Example per group"
            ) from error
        names = self._groups.present(file, list(features))
        kinds = {tf.int64: "int64_list", tf.float32: "float_list", tf.string: "bytes_list"}
        for name in names:
            dtype = self._dtypes.get(name, tf.int64)
            kind = features[name].WhichOneof("kind")
            if kind not in (None, kinds[dtype]):
                raise DataError(
                    f"{file}: feature '{name}' is {kind}, and data_config.input_fields needs {kinds[dtype]}; "
                    "change the field's input_type, or write the feature with that type"
                )
        return self._schema.group_size_field in names


def _all_equal(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Return whether two vectors are equal up to the length of the shorter one."""
    shortest = tf.minimum(tf.size(first), tf.size(second))
    return tf.reduce_all(tf.equal(first[:shortest], second[:shortest]))
