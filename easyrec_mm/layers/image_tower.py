"""The image tower: pixels -> image vector. Backbones come from keras-hub and keras.applications.

To add a backbone, add its builder to BACKBONES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from easyrec_mm.layers.batch_norm import with_fused_batch_norm
from easyrec_mm.layers.dnn import dense

# Mean and deviation of the pixels 0-255 that a backbone expects as (x - mean) / deviation, a channel each.
Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Normalisation = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
MINUS_ONE_TO_ONE: Normalisation = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


class Backbone(NamedTuple):
    """How to build a backbone: channels -> functional model `[U, H, W, channels]` -> `[U, h, w, filters]`."""

    build: Callable[[int], keras.Model]
    normalisation: Normalisation


def _resnet18(channels: int) -> keras.Model:
    import keras_hub  # half a second, and only this backbone needs it

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[2, 2, 2, 2],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(None, None, channels),
    )


def _mobilenet_v3_large(channels: int) -> keras.Model:
    return keras.applications.MobileNetV3Large(
        input_shape=(None, None, channels), include_top=False, weights=None, include_preprocessing=False
    )


BACKBONES: dict[str, Backbone] = {
    "ResNet": Backbone(_resnet18, IMAGENET),
    "MobileNet": Backbone(_mobilenet_v3_large, MINUS_ONE_TO_ONE),
}


class ImageTower(keras.layers.Layer):
    """Pixels -> normalised -> backbone -> average over the picture -> projection -> head.

    Args:
      backbone: key of BACKBONES.
      channels: 3 or 1.
      projection: width of the projection.
      head: further layer over the projection, or None.
      dtype: Keras dtype policy of the whole tower.
    """

    def __init__(
        self,
        backbone: str,
        channels: int,
        projection: int,
        head: keras.layers.Layer | None,
        dtype: str,
        name: str = "image",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        entry = BACKBONES[backbone]
        # Arrays, not tensors, which a traced function would capture as inputs of its own.
        mean, deviation = (np.array(values[:channels], np.float32) for values in entry.normalisation)
        self._scale, self._shift = 1.0 / deviation, -mean / deviation
        self.backbone = with_fused_batch_norm(entry.build(channels), dtype)
        self._projection = dense(projection, "projection", 0.0, dtype=dtype)
        self._head = head

    def call(self, pixels: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Pixels `[U, H, W, C]`, 0-255, uint8 or float -> image vector float32 `[U, D]`."""
        # Repeated along a row of pixels: a product with one number a channel alone takes five times as long.
        row = tf.shape(pixels)[2:]
        x = tf.cast(pixels, tf.float32) * tf.broadcast_to(self._scale, row) + tf.broadcast_to(self._shift, row)
        x = self.backbone(tf.cast(x, self.compute_dtype), training=training)
        x = tf.reduce_mean(x, axis=[1, 2])  # [U, filters]
        x = self._projection(x)
        if self._head is not None:
            x = self._head(x)
        return tf.cast(x, tf.float32)
