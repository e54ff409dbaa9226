"""Batch normalisation by the statistics of a global batch, where several replicas train together."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.network.layers.together import stacked


class BatchNorm(keras.layers.BatchNormalization):
    """Keras's BatchNormalization, but for inputs without elements, which keep the moving averages as they are.

    A worker may have no samples of the last batch of an epoch, and all sequences of a batch may be empty. The mean of
    nothing is NaN, as would be the gradients of `gamma`.

    Attributes:
      replicas: the replicas whose samples have common statistics in training; None for those of the replica alone.
    """

    replicas: Replicas | None = None

    def _moments(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if self.replicas is None:
            mean, variance = super()._moments(inputs, mask)
            is_empty = tf.equal(tf.size(inputs), 0)
        else:
            mean, variance, number = self.replicas.moments(inputs, self._reduction_axes)
            is_empty = tf.equal(number, 0)
        return (
            tf.where(is_empty, tf.cast(self.moving_mean, mean.dtype), mean),
            tf.where(is_empty, tf.cast(self.moving_variance, variance.dtype), variance),
        )


def normalize_together(layers: Sequence[BatchNorm], x: tf.Tensor, training: bool) -> tf.Tensor:
    """Return what each of T layers makes of its part of `[S, T, F]`, and update their moving statistics in training."""
    first, dtype = layers[0], x.dtype
    x = tf.cast(x, tf.float32)
    of_names = [[getattr(layer, name) for layer in layers] for name in ("moving_mean", "moving_variance")]
    moving = [stacked(variables, "float32") for variables in of_names]  # [T, F] each
    statistics = moving
    if training and first.trainable:
        # Those of nothing are the averages of the first layer, not of each.
        is_empty = tf.equal(tf.size(x), 0) if first.replicas is None else False
        statistics = [tf.where(is_empty, *pair) for pair in zip(moving, first._moments(x, None), strict=True)]
        for variables, old, new in zip(of_names, moving, statistics, strict=True):
            values = tf.unstack(old * first.momentum + new * (1.0 - first.momentum))
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
    offset, scale = [stacked([getattr(layer, name) for layer in layers], "float32") for name in ("beta", "gamma")]
    return tf.cast(tf.nn.batch_normalization(x, *statistics, offset, scale, first.epsilon), dtype)


def synchronize(
    layers: Sequence[keras.layers.Layer], replicas: Replicas, kinds: tuple[type[keras.layers.Layer], ...]
) -> None:
    """Let all normalisation of these kinds within the layers use the statistics of all replicas."""
    for layer in layers:
        for inner in layer._flatten_layers():
            if isinstance(inner, kinds):
                inner.replicas = replicas


def is_synchronized(layer: keras.layers.Layer) -> bool:
    """Return whether the layer, or one within it, normalises by the statistics of all replicas, which meet there."""
    return any(getattr(inner, "replicas", None) is not None for inner in layer._flatten_layers())
