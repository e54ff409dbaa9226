"""Vectors of pictures -> vectors of items.

Shape legend: U images (what an item shows: one picture, several, or none), L their pictures, D width of a vector.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from easyrec_mm.network.layers.dnn import dense


class ItemImage(keras.layers.Layer):
    """Vectors of pictures -> the vector of each image: of one picture, of several together, or of none.

    Args:
      width: D.
      pooling: MEAN, MAX or ATTENTION over an item's pictures; "" if an item has one.
      has_no_image_vector: train a vector for items without a picture.
      dropout: share of the images that take that vector in a step of training.
      seed: of that choice.
    """

    def __init__(
        self, width: int, pooling: str = "", has_no_image_vector: bool = False, dropout: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(name="item", dtype="float32")
        self._pooling, self._dropout = pooling, dropout
        self.no_image = None
        if has_no_image_vector:
            self.no_image = self.add_weight(shape=(width,), initializer="zeros", name="no_image", dtype="float32")
        self._hidden: keras.layers.Layer | None = None
        self._score: keras.layers.Layer | None = None
        if pooling == "ATTENTION":
            self._hidden = dense(width, "attention_hidden", 0.0, "tanh", "float32")
            self._score = dense(1, "attention_score", 0.0, dtype="float32")
            self._hidden.build((None, width))
            self._score.build((None, width))
        self._draws = keras.random.SeedGenerator(seed, name="modality_dropout") if dropout else None
        self.built = True

    def pooled(self, vectors: tf.Tensor, image: tf.Tensor, num_images: tf.Tensor) -> tf.Tensor:
        """One vector for the pictures of each image.

        Args:
          vectors: float32 `[L, D]`, of the pictures of all images.
          image: int32 `[L]`: which image each is of.
          num_images: U.

        Returns:
          float32 `[U, D]`, zeros for an image without a picture.
        """
        if not self._pooling:
            return tf.math.unsorted_segment_sum(vectors, image, num_images)
        if self._pooling == "MEAN":
            return tf.math.unsorted_segment_mean(vectors, image, num_images)
        if self._pooling == "MAX":
            counts = tf.math.unsorted_segment_sum(tf.ones_like(image), image, num_images)
            largest = tf.math.unsorted_segment_max(vectors, image, num_images)
            return tf.where(counts[:, None] > 0, largest, 0.0)
        if self._hidden is None or self._score is None:
            raise ValueError(f"pooling is {self._pooling}")
        scores = self._score(self._hidden(vectors))[:, 0]  # [L]
        largest = tf.math.unsorted_segment_max(tf.stop_gradient(scores), image, num_images)
        weights = tf.exp(scores - tf.gather(largest, image))
        totals = tf.math.unsorted_segment_sum(weights, image, num_images)
        return tf.math.unsorted_segment_sum(vectors * (weights / tf.gather(totals, image))[:, None], image, num_images)

    def call(self, vectors: tf.Tensor, has_picture: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Vectors float32 `[U, D]`, bool `[U]` -> `[U, D]`, with the trained vector where there is no picture."""
        if self.no_image is None:
            return vectors
        if training and self._draws is not None:
            kept = keras.random.uniform(tf.shape(has_picture), seed=self._draws) >= self._dropout
            has_picture &= kept
        return tf.where(has_picture[:, None], vectors, tf.convert_to_tensor(self.no_image))
