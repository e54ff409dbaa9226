"""The batch that one training step works on.

Shape legend: S samples; U distinct images, where an image is what the image field of a group names: one picture,
several, or none; P distinct pictures; E pictures with pixels; L pairs of an image and one of its pictures; H x W x C
pixels; C distinct contents of a further kind, such as texts. If items have those, images with different ones are
different images: an image is an item then, and U the number of distinct items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from easyrec_mm.schema import IMAGE


class Images(NamedTuple):
    """Which picture each image of a batch shows, and other values of images and pictures.

    encoded        int32 [E]: row of pixels -> picture; the other pictures have a vector in the picture bank
    category       int64 [P], input of the image tower in addition to the picture; zeros if the tower takes no category
    picture_key    int64 [P], equal only for the same picture and category, also in the batches of other workers
    bank_row       int32 [P]: picture -> row of the picture bank; zeros without a bank
    link_picture   int32 [L]: pair -> picture
    link_image     int32 [L]: pair -> image, ascending
    has_picture    bool [U]
    key            int64 [U], equal only for the same image, also in the batches of other workers
    features       feature name -> int64 [U], features that losses on image vectors compare with
    labels         label name -> float32 [U], labels of losses on image vectors
    """

    encoded: tf.Tensor
    category: tf.Tensor
    picture_key: tf.Tensor
    bank_row: tf.Tensor
    link_picture: tf.Tensor
    link_image: tf.Tensor
    has_picture: tf.Tensor
    key: tf.Tensor
    features: dict[str, tf.Tensor]
    labels: dict[str, tf.Tensor]


class Contents(NamedTuple):
    """The distinct contents of one kind, other than pictures, of a batch's items.

    values     [E, ...], the contents to encode; of texts string [E]
    encoded    int32 [E]: row of `values` -> content; the other contents have a vector in the bank of their kind
    key        int64 [C], equal only for the same content, also in the batches of other workers
    bank_row   int32 [C]: content -> row of the bank; zeros without a bank
    of_image   int32 [U]: image -> content
    is_there   bool [C]: whether there is something; a text that is empty is not there
    """

    values: tf.Tensor
    encoded: tf.Tensor
    key: tf.Tensor
    bank_row: tf.Tensor
    of_image: tf.Tensor
    is_there: tf.Tensor


class Batch(NamedTuple):
    """The samples of several groups, in the same form for all input formats.

    features       feature name -> values, see Feature.values
    labels         label name -> float32 [S]; empty for prediction
    sample_weight  float32 [S]; ones unless the config names a field
    pixels         uint8 [E, H, W, C]; E is 0 for a model without pictures
    sample_image   int32 [S]: sample -> image
    images         images of the groups
    contents       kind -> contents of the images, other than pictures
    """

    features: dict[str, tf.Tensor | tf.RaggedTensor]
    labels: dict[str, tf.Tensor]
    sample_weight: tf.Tensor
    pixels: tf.Tensor
    sample_image: tf.Tensor
    images: Images
    contents: dict[str, Contents]

    def of_banks(self) -> dict[str, Images | Contents]:
        """Return what has `bank_row` and `encoded`, by the name of the bank: IMAGE for pictures, and `contents`."""
        return {IMAGE: self.images, **self.contents}

    @property
    def num_samples(self) -> int:
        """Return the number of samples, S."""
        return int(self.sample_image.shape[0])

    @property
    def num_images(self) -> int:
        """Return the number of distinct images, U."""
        return int(self.images.has_picture.shape[0])

    @property
    def num_encoded(self) -> int:
        """Return the number of pictures with pixels, E."""
        return int(self.pixels.shape[0])


@dataclass(frozen=True)
class InputBatch:
    """A batch and its origin.

    batch               the samples; zero samples if every group was bad
    kept_fields         field name -> [S], fields that were requested in addition to those of the model
    num_groups          number of groups read by all workers, including the bad ones
    num_of_first_epoch  how many of these are of the epoch of the first one
    epoch               epoch (from 0) of the batch's last group
    epochs_before       number of epochs that were over before this batch
    epochs_done         number of epochs that are over with this batch
    step                the step that trains the batch; with one worker, one without samples has the step of the next
    picture_path        the argument of PictureLoader for each of the P pictures
    origin              int64 [3, G]: index of the file, row and number of samples of each valid group
    """

    batch: Batch
    kept_fields: dict[str, tf.Tensor]
    num_groups: int
    num_of_first_epoch: int
    epoch: int
    epochs_before: int
    epochs_done: int
    step: int
    picture_path: list[bytes]
    origin: tf.Tensor


def one_picture_each(num_images: int) -> Images:
    """Return images with one picture each, all with pixels."""
    rows = tf.range(num_images)
    return Images(
        encoded=rows,
        category=tf.zeros([num_images], tf.int64),
        picture_key=tf.range(num_images, dtype=tf.int64),
        bank_row=tf.zeros([num_images], tf.int32),
        link_picture=rows,
        link_image=rows,
        has_picture=tf.ones([num_images], tf.bool),
        key=tf.range(num_images, dtype=tf.int64),
        features={},
        labels={},
    )


def has_content(values: tf.Tensor) -> tf.Tensor:
    """Return whether there is something in each content of Contents.values, bool `[N]`.

    A text is more than white space, and other contents have a number that is not 0.
    """
    if values.dtype == tf.string:
        return tf.not_equal(tf.strings.strip(values), "")
    return tf.reduce_any(tf.not_equal(tf.reshape(values, [tf.shape(values)[0], -1]), 0), 1)
