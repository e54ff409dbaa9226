"""Gradients of embedding tables: tf.IndexedSlices of the rows of a batch, those of many tables handled together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias, TypeVar

import tensorflow as tf

from easyrec_mm.network.layers.row_lookup import joined, lengths

# None for a variable that the loss does not depend on.
Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None
_Member = TypeVar("_Member")
# Bits of a row's number: above them is the number of its table.
_ROW_BITS = 40


def sum_duplicate_rows(gradients: Sequence[Gradient]) -> list[Gradient]:
    """Sum the duplicate rows of each IndexedSlices, so that each row occurs once; leave other gradients unchanged."""
    summed = list(gradients)
    slices = [(i, gradient) for i, gradient in enumerate(gradients) if isinstance(gradient, tf.IndexedSlices)]
    for members in grouped(slices, lambda pair: (tuple(pair[1].values.shape[1:]), pair[1].values.dtype)):
        for (i, _), gradient in zip(members, _summed([gradient for _, gradient in members]), strict=True):
            summed[i] = gradient
    return summed


def grouped(members: Sequence[_Member], kind: Callable[[_Member], Hashable]) -> list[list[_Member]]:
    """Return the members of each kind, in their order."""
    groups: dict[Hashable, list[_Member]] = {}
    for member in members:
        groups.setdefault(kind(member), []).append(member)
    return list(groups.values())


def _summed(slices: Sequence[tf.IndexedSlices]) -> list[tf.IndexedSlices]:
    """Sum the duplicate rows of tables of a width."""
    ids = [tf.reshape(part.indices, [-1]) if part.indices.shape.rank != 1 else part.indices for part in slices]
    rows = [tf.cast(part, tf.int64) for part in ids]
    values = joined([part.values for part in slices])
    distinct, position = tf.unique(_numbered(rows))
    sums = tf.math.unsorted_segment_sum(values, position, tf.size(distinct))
    if len(slices) == 1:
        return [tf.IndexedSlices(sums, distinct, slices[0].dense_shape)]
    # Distinct rows come in the order of their tables, because the rows of a table are behind each other.
    table = tf.cast(tf.bitwise.right_shift(distinct, tf.constant(_ROW_BITS, tf.int64)), tf.int32)
    num_rows = tf.math.bincount(table, minlength=len(slices), maxlength=len(slices))
    distinct = tf.bitwise.bitwise_and(distinct, tf.constant((1 << _ROW_BITS) - 1, tf.int64))
    return [
        tf.IndexedSlices(of_table, rows_of_table, part.dense_shape)
        for of_table, rows_of_table, part in zip(
            tf.split(sums, num_rows, num=len(slices)),
            tf.split(distinct, num_rows, num=len(slices)),
            slices,
            strict=True,
        )
    ]


def _numbered(rows: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the rows of all tables, one behind the other, with the number of the table in the bits above."""
    if len(rows) == 1:
        return rows[0]
    first = tf.constant([table << _ROW_BITS for table in range(len(rows))], tf.int64)
    return joined(rows) + tf.repeat(first, lengths(rows))
