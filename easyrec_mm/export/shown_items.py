"""The items of a batch in the form that the exported models take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from easyrec_mm.data.batch import Batch


@dataclass(frozen=True)
class ShownItems:
    """The items of a batch, with their pictures sorted by item, as the exported models take them.

    num_images     U
    images         int [K]: the images that have pictures; if items have other contents, all of them
    first_sample   int [K]: the first sample of each
    pixels         float32 [N, H, W, C]
    item           int64 [N]: which of the K images each picture belongs to
    paths          [N]
    """

    num_images: int
    images: np.ndarray
    first_sample: np.ndarray
    pixels: tf.Tensor
    item: np.ndarray
    paths: list[bytes]

    @staticmethod
    def of(batch: Batch, picture_path: list[bytes], has_contents: bool) -> ShownItems:
        """Return the items of a batch in which all pictures have pixels, and whose items have other contents or not."""
        link_picture, link_image = batch.images.link_picture, batch.images.link_image.numpy()
        images, item = np.unique(link_image, return_inverse=True)
        if has_contents:
            images, item = np.arange(batch.num_images), link_image
        sample_image = batch.sample_image.numpy()
        return ShownItems(
            num_images=batch.num_images,
            images=images,
            first_sample=np.array([np.flatnonzero(sample_image == row)[0] for row in images], np.int64),
            pixels=tf.cast(tf.gather(batch.pixels, link_picture), tf.float32),
            item=item.astype(np.int64),
            paths=[picture_path[i] for i in link_picture.numpy()],
        )
