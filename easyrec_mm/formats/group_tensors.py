"""Passes checked groups from Arrow to a TensorFlow graph."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.features.tensorflow_back_end import DTYPES
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.source import GroupRows
from easyrec_mm.formats.typed_groups import TextGroup, TypedGroups, TypedRows, text_groups

# Dtype of a field -> dtype of its values in GroupRows.
GROUP_DTYPES = {**DTYPES, "bool": tf.int64}


class GroupTensors:
    """Reads groups from the rows of tables; a TableGroups.

    Args:
      groups: determines what is read, and the valid groups.
    """

    def __init__(self, groups: TypedGroups) -> None:
        self._groups = groups
        self.is_flat = groups.is_flat
        self.columns = groups.columns
        self.prepare = groups.prepare

    def signature(self) -> tuple[Any, ...]:
        """Return the specs of the result of `arrays`."""
        numbers, texts = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string)
        fields = {name: tf.TensorSpec([None], GROUP_DTYPES[dtype]) for name, dtype in self._groups.dtypes.items()}
        return fields, texts, numbers, numbers, numbers, texts

    def arrays(self, table: pa.Table) -> tuple[Any, ...]:
        """Return the groups of a table as arrays, for `rows`."""
        return as_arrays(self._groups.read(table))

    def rows(self, arrays: tuple[Any, ...]) -> GroupRows:
        """Return the groups for the result of `arrays` as tensors; runs within a graph."""
        fields, *other_arrays = arrays
        num_samples = tf.reduce_sum(other_arrays[1])
        texts = (name for name, dtype in self._groups.dtypes.items() if dtype == "string")
        return GroupRows(fields | {name: _split(fields[name], num_samples) for name in texts}, *other_arrays)

    def texts(self, table: pa.Table) -> Iterator[TextGroup | Problem]:
        """Yield each group of a table as texts, or what is wrong with it."""
        return text_groups(self._groups.read(table))


def as_arrays(rows: TypedRows) -> tuple[Any, ...]:
    """Return groups as the arrays that GroupTensors.rows takes."""
    fields = {name: _joined(values) if isinstance(values, pa.Array) else values for name, values in rows.fields.items()}
    refused = np.array(sorted(rows.problems), np.int64)
    evidence = np.array([rows.problems[i].encode() for i in refused.tolist()], object)
    return fields, rows.image_path, rows.group_size, rows.kept_groups, refused, evidence


def _joined(values: pa.Array) -> NDArray[np.object_]:
    """Return all texts joined to one, and the separator between them: [2].

    One object per text, and converting it to a tensor, would take longer than everything else, and hold Python's lock.
    """
    separator = b"\x1f"
    while True:
        lists = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
        joined = pc.binary_join(lists, pa.scalar(separator, pa.large_binary()))[0].as_py()
        if joined.count(separator) == max(len(values) - 1, 0):
            return np.array([joined, separator], object)
        separator += secrets.token_bytes(4)  # a text contains it


def _split(joined: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Split the result of `_joined` into its texts, string `[number]`."""
    return tf.raw_ops.StringSplitV2(input=joined[:1], sep=joined[1]).values[:number]
