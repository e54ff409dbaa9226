"""Tables that are divided among the replicas: replica k of n holds the rows from k * ceil(rows / n) on.

A variable that holds a part of a table says so by TensorFlow's own description of such a part (SaveSliceInfo), so that
whoever writes or reads it needs nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Shard(NamedTuple):
    """The rows `first` to `stop` - 1 of a table with `num_rows` rows; a replica's part may be empty."""

    num_rows: int
    first: int
    stop: int


def rows_of_each(num_rows: int, num_replicas: int) -> int:
    """Return how many rows a replica holds; the last ones may hold fewer."""
    return -(-num_rows // num_replicas)


def shard_of_replica(num_rows: int, number: int, num_replicas: int) -> Shard:
    """Return the part of a table that a replica holds."""
    each = rows_of_each(num_rows, num_replicas)
    first = min(number * each, num_rows)
    return Shard(num_rows, first, min(first + each, num_rows))


def mark(variable: tf.Variable, shard: Shard) -> None:
    """Note that a variable holds this part of the rows."""
    own = list(variable.shape)
    whole, offset = [shard.num_rows, *own[1:]], [shard.first] + [0] * (len(own) - 1)
    variable._set_save_slice_info(tf.Variable.SaveSliceInfo(variable.name, whole, offset, own))


def mark_like(variable: tf.Variable, other: tf.Variable) -> None:
    """Note that a variable holds numbers of the same rows as `other`, a slot those of its table."""
    shard = shard_of(other)
    if shard is not None:
        mark(variable, shard)


def shard_of(variable: tf.Variable | tf.Tensor) -> Shard | None:
    """Return the part of a table that a variable holds; None for a variable that every replica holds as a whole."""
    info = getattr(variable, "_save_slice_info", None)
    if info is None:
        return None
    return Shard(info.full_shape[0], info.var_offset[0], info.var_offset[0] + info.var_shape[0])


def whole_shape(variable: tf.Variable | tf.Tensor) -> list[int]:
    """Return the shape of a variable; if it holds a part of a table, the shape of the whole table."""
    shard = shard_of(variable)
    shape = list(variable.shape)
    return shape if shard is None else [shard.num_rows, *shape[1:]]
