"""Many layers of a shape computed together: the time to compile a step, and to begin it, grows with its operations.

Their variables stay variables of their own, so that checkpoints, optimizers and exports know nothing of this. Letters
in shapes: T layers, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

# Number of layers of a kind, or of their losses, from which on they are computed together.
MANY = 16


def are_many(number: int) -> bool:
    """Return whether that many of a kind are computed together; fewer keep the last bits that they have one by one."""
    return number >= MANY


def are_together(number: int) -> bool:
    """Return whether that many layers of a kind are computed together here.

    Outside of a graph they never are: layers create their variables there, when they are called for the first time,
    and the search for the first operation that is not finite names the layer.
    """
    return are_many(number) and not tf.executing_eagerly()


def stacked(variables: Sequence[keras.Variable], dtype: str) -> tf.Tensor:
    """Return variables of a shape in one tensor `[T, ...]`."""
    return tf.cast(tf.stack([tf.convert_to_tensor(variable) for variable in variables]), dtype)


def dense_together(layers: Sequence[keras.layers.Dense], x: tf.Tensor) -> tf.Tensor:
    """Return the outputs of dense layers of a shape: `[S, F]` for all, or `[S, T, F]` -> `[S, T, units]`."""
    first = layers[0]
    dtype = first.compute_dtype
    x = tf.cast(x, dtype)
    kernels = stacked([layer.kernel for layer in layers], dtype)  # [T, F, units]
    if x.shape.rank == 2:
        # One product, so that the gradient of `x` needs no memory for each layer.
        beside = tf.reshape(tf.transpose(kernels, [1, 0, 2]), [x.shape[1], -1])  # [F, T * units]
        x = tf.reshape(tf.matmul(x, beside), [-1, len(layers), first.units])
    else:
        x = tf.transpose(tf.matmul(tf.transpose(x, [1, 0, 2]), kernels), [1, 0, 2])
    outputs: tf.Tensor = first.activation(x + stacked([layer.bias for layer in layers], dtype))
    return outputs
