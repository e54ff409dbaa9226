"""Sequences of positions, such as places of a picture or tokens of a text, packed into vectors.

Batches, banks and exports carry a vector per content; a packed sequence is one: for each of L positions its F numbers,
and whether it is used, 1 or 0. Shape legend: N contents, L positions, F numbers of each.
"""

from __future__ import annotations

import tensorflow as tf


def packed_width(length: int, width: int) -> int:
    """Return the length of a packed sequence of L positions of F numbers."""
    return length * (width + 1)


def packed(values: tf.Tensor, is_used: tf.Tensor | None = None) -> tf.Tensor:
    """Pack sequences `[N, L, F]`; `is_used` is bool `[N, L]`, by default all positions are."""
    length, width = values.shape[1:]
    flags = tf.ones_like(values[..., :1]) if is_used is None else tf.cast(is_used, values.dtype)[..., None]
    return tf.reshape(tf.concat([values, flags], 2), [-1, packed_width(length, width)])


def unpacked(sequences: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the values `[N, L, F]` of packed sequences of L positions, and whether each is used, bool `[N, L]`."""
    positions = tf.reshape(sequences, [-1, length, sequences.shape[1] // length])
    return positions[..., :-1], positions[..., -1] > 0.5
