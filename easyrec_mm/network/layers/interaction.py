"""Products of pairs of features. S samples, K features, D width to which each feature is projected."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import keras
import tensorflow as tf

from easyrec_mm.network.layers.dnn import dense


class DotInteraction(keras.layers.Layer):
    """Dot products of all pairs of features, each feature projected by its own matrix (DLRM, Naumov et al., 2019).

    Args:
      num_features: K.
      dim: D.
      scale: factor of every product.
      l2: regularisation of the matrices.
      dtype: Keras dtype policy.
    """

    def __init__(
        self, num_features: int, dim: int, scale: float, l2: float, name: str, dtype: str | None = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._projections = [dense(dim, f"projection_{i}", l2, dtype=dtype) for i in range(num_features)]
        self._scale = scale
        self._pairs = list(combinations(range(num_features), 2))

    def call(self, features: Sequence[tf.Tensor]) -> tf.Tensor:
        """Map K tensors `[S, width]` to float32 `[S, K (K - 1) / 2]`, the pairs (0, 1), (0, 2), ..., (1, 2), ..."""
        projected = [project(x) for project, x in zip(self._projections, features, strict=True)]
        x = tf.stack(projected, axis=1)  # [S, K, D]
        num_features = len(projected)
        products = tf.reshape(tf.matmul(x, x, transpose_b=True), [-1, num_features**2])
        places = [i * num_features + j for i, j in self._pairs]
        return self._scale * tf.cast(tf.gather(products, places, axis=1), tf.float32)
