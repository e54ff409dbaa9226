"""The layers that turn the vectors of pictures, and of other contents that may be absent, into vectors of items.

Shape legend: U images (an item's one picture, several pictures or none), L their pictures, D width of a vector.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from easyrec_mm.network.layers.dnn import dense


class OrNothing(keras.layers.Layer):
    """Layer that puts a trained vector in place of the vectors of contents that items do not have.

    Args:
      name: name of the layer.
      width: D.
      vector_name: name of the trained vector; "" for none: vectors then stay as they are.
      dropout: share of the items that get this vector in a training step, although they have the content.
      seed: seed of the random choice of these items.
      length: positions of the packed sequences that the vectors are, see sequences.py; 0 for vectors. The trained
        vector is then the only position of items without the content.

    Attributes:
      nothing: the trained vector, or None.
    """

    def __init__(
        self, name: str, width: int, vector_name: str, dropout: float = 0.0, seed: int = 0, length: int = 0
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self._dropout = dropout
        # Numbers of the other positions.
        self._padding = width - width // length if length else None
        size = width // length - 1 if length else width
        self.nothing = None
        if vector_name:
            self.nothing = self.add_weight(shape=(size,), initializer="zeros", name=vector_name, dtype="float32")
        self._draws = keras.random.SeedGenerator(seed, name="modality_dropout") if dropout else None
        self.built = True

    def call(self, vectors: tf.Tensor, is_there: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return vectors float32 `[U, D]`, replaced by the trained vector where `is_there` (bool `[U]`) is False."""
        if self.nothing is None:
            return vectors
        if training and self._draws is not None:
            is_kept = keras.random.uniform(tf.shape(is_there), seed=self._draws) >= self._dropout
            is_there &= is_kept
        return tf.where(is_there[:, None], vectors, self.in_place())

    def in_place(self) -> tf.Tensor:
        """Return what stands in place of the vector of an item without the content, float32 `[D]`.

        Raises:
          ValueError: if there is no trained vector.
        """
        if self.nothing is None:
            raise ValueError("no vector is trained for items without the content")
        vector = tf.convert_to_tensor(self.nothing)
        if self._padding is None:
            return vector
        return tf.pad(tf.concat([vector, [1.0]], 0), [[0, self._padding]])


class ItemImage(OrNothing):
    """Layer from the vectors of pictures to the vector of each image, which has one picture, several or none.

    Args:
      width: D.
      pooling: MEAN, MAX or ATTENTION over an item's pictures; "" if each item has one picture.
      has_no_image_vector: whether to train a vector for items without a picture.
      dropout: share of the images that get this vector in a training step, even with a picture.
      seed: seed of the random choice of these images.
      length: see OrNothing.
    """

    def __init__(
        self,
        width: int,
        pooling: str = "",
        has_no_image_vector: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
        length: int = 0,
    ) -> None:
        super().__init__("item", width, "no_image" if has_no_image_vector else "", dropout, seed, length)
        self._pooling = pooling
        self._hidden: keras.layers.Layer | None = None
        self._score: keras.layers.Layer | None = None
        if pooling == "ATTENTION":
            self._hidden = dense(width, "attention_hidden", 0.0, "tanh", "float32")
            self._score = dense(1, "attention_score", 0.0, dtype="float32")
            self._hidden.build((None, width))
            self._score.build((None, width))

    def pooled(self, vectors: tf.Tensor, image: tf.Tensor, num_images: tf.Tensor) -> tf.Tensor:
        """Pool the vectors of each image's pictures to one vector.

        Args:
          vectors: float32 `[L, D]`, the vectors of the pictures of all images.
          image: int32 `[L]`: the image of each picture.
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
            raise ValueError(f"pooling: '{self._pooling}' is unknown; choose MEAN, MAX or ATTENTION")
        scores = self._score(self._hidden(vectors))[:, 0]  # [L]
        largest = tf.math.unsorted_segment_max(tf.stop_gradient(scores), image, num_images)
        weights = tf.exp(scores - tf.gather(largest, image))
        totals = tf.math.unsorted_segment_sum(weights, image, num_images)
        return tf.math.unsorted_segment_sum(vectors * (weights / tf.gather(totals, image))[:, None], image, num_images)
