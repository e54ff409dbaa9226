"""The encoder of vectors that another model has computed: they are their own features."""

from __future__ import annotations

import tensorflow as tf

from easyrec_mm.data.batch import has_content
from easyrec_mm.network.layers.content_tower import ContentEncoder


class VectorEncoder(ContentEncoder):
    """Returns vectors float32 `[T, F]` as they are; a vector of zeros stands for none.

    Args:
      width: F.
      dtype: Keras dtype policy.
    """

    prepared_dtype = tf.float32

    def __init__(self, width: int, dtype: str) -> None:
        super().__init__(name="vector", dtype=dtype)
        self.num_features = width
        self.prepared_shape = (width,)
        self.source = f"vector of {width} numbers"

    def empty(self) -> tf.Tensor:
        return tf.zeros([1, self.num_features])

    def prepare(self, values: tf.Tensor) -> tf.Tensor:
        return values

    def is_there(self, prepared: tf.Tensor) -> tf.Tensor:
        return has_content(prepared)

    def call(self, prepared: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.identity(prepared)
