"""What one step works on.

Shape legend: S samples; U distinct images, what the image field of a group names: a picture, several, or none; P
distinct pictures; E of them with pixels; L pairs of an image and a picture of it; H x W x C pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf


class Images(NamedTuple):
    """Which pictures the images of a batch have, and what is known of them.

    encoded        int32 [E]: row of pixels -> picture; the other pictures have a vector in the picture bank
    category       int64 [P], what the image tower sees beside the picture; zeros where it sees nothing
    bank_row       int32 [P]: picture -> row of the picture bank; zeros without one
    link_picture   int32 [L]: pair -> picture
    link_image     int32 [L]: pair -> image, ascending
    has_picture    bool [U]
    features       feature name -> int64 [U], what losses on image vectors compare with
    labels         label name -> float32 [U], of losses on image vectors
    """

    encoded: tf.Tensor
    category: tf.Tensor
    bank_row: tf.Tensor
    link_picture: tf.Tensor
    link_image: tf.Tensor
    has_picture: tf.Tensor
    features: dict[str, tf.Tensor]
    labels: dict[str, tf.Tensor]


class Batch(NamedTuple):
    """The samples of a number of groups, whatever input they came from.

    features       feature name -> values, see Feature.values
    labels         label name -> float32 [S]; empty for prediction
    sample_weight  float32 [S]; ones unless the config names a field
    pixels         uint8 [E, H, W, C]; E is 0 for a model without pictures
    sample_image   int32 [S]: sample -> image
    images         of the groups
    """

    features: dict[str, tf.Tensor | tf.RaggedTensor]
    labels: dict[str, tf.Tensor]
    sample_weight: tf.Tensor
    pixels: tf.Tensor
    sample_image: tf.Tensor
    images: Images

    @property
    def num_samples(self) -> int:
        """S."""
        return int(self.sample_image.shape[0])

    @property
    def num_images(self) -> int:
        """U."""
        return int(self.images.has_picture.shape[0])


@dataclass(frozen=True)
class InputBatch:
    """A batch and what it says of its origin.

    batch          the samples; there may be none, if every group was bad
    kept           field name -> [S], the fields that were asked for beside the model's
    num_groups     groups read, the bad ones included
    epoch          epoch (from 0) of the batch's last group
    step           the step that is to train it; a batch without samples has that of the next one
    picture_path   what PictureLoader takes of each of the P pictures
    """

    batch: Batch
    kept: dict[str, tf.Tensor]
    num_groups: int
    epoch: int
    step: int
    picture_path: list[bytes]


def one_picture_each(num_images: int) -> Images:
    """Images of one picture each, all with pixels."""
    rows = tf.range(num_images)
    return Images(
        encoded=rows,
        category=tf.zeros([num_images], tf.int64),
        bank_row=tf.zeros([num_images], tf.int32),
        link_picture=rows,
        link_image=rows,
        has_picture=tf.ones([num_images], tf.bool),
        features={},
        labels={},
    )
