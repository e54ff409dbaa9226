"""Batch normalisation by the statistics of a global batch, where several replicas train together."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas


class BatchNorm(keras.layers.BatchNormalization):
    """Keras's BatchNormalization.

    Attributes:
      replicas: the replicas whose samples have common statistics in training; None for those of the replica alone.
    """

    replicas: Replicas | None = None

    def _moments(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if self.replicas is None:
            alone: tuple[tf.Tensor, tf.Tensor] = super()._moments(inputs, mask)
            return alone
        mean, variance, _ = self.replicas.moments(inputs, self._reduction_axes)
        return mean, variance


def synchronize(layers: Sequence[keras.layers.Layer], replicas: Replicas) -> None:
    """Let all batch normalisation within these layers use the statistics of all replicas."""
    for layer in layers:
        for inner in layer._flatten_layers():
            if isinstance(inner, BatchNorm):
                inner.replicas = replicas
