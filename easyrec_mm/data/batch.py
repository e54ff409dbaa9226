"""What one step works on. Shape legend: S samples, U distinct pictures, H x W x C pixels."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Batch(NamedTuple):
    """The samples of a number of groups, whatever input they came from.

    features       feature name -> values, as data/transform.py lists them
    labels         label name -> float32 [S]; empty for prediction
    sample_weight  float32 [S]; ones unless the config names a field
    pixels         uint8 [U, H, W, C]; U is 0 for a model without pictures
    sample_image   int32 [S]: sample -> row of pixels
    """

    features: dict[str, tf.Tensor | tf.RaggedTensor]
    labels: dict[str, tf.Tensor]
    sample_weight: tf.Tensor
    pixels: tf.Tensor
    sample_image: tf.Tensor

    @property
    def num_samples(self) -> int:
        """S."""
        return int(self.sample_image.shape[0])

    @property
    def num_images(self) -> int:
        """U."""
        return int(self.pixels.shape[0])
