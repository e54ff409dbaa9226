"""Auxiliary losses on the vectors of distinct images: they keep an image tower from collapsing where clicks are sparse.

The caller decides their weights relative to the task losses, and where labels and items come from. All arithmetic is
float32. Images that are not counted have no part in a loss, neither as positives nor as negatives, whatever their rows
contain. Shapes: U distinct images, K counted images, D width of the image vector, C classes.

To add a margin to ClassLoss, add a function here and its key in MARGINS.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

# Shorter vectors are not scaled to length 1, because the gradient grows with the inverse of the length.
_SHORTEST = 1e-3
# A logit whose exponential is 0; it is finite because 0 * infinity would be NaN.
_EXCLUDED = -1e9
# The rounding error of 1 - cos^2 in float32, below which the gradient of the square root is meaningless.
_LEAST_SQUARED_SINE = 1e-7
SOFTMAX = "softmax"
STOP_GRADIENTS = ("none", "item", "image")


def arcface(cosine: tf.Tensor, margin: tf.Tensor) -> tf.Tensor:
    """Return cos(theta + margin) of `[K]` cosines and margins (ArcFace, Deng et al., CVPR 2019, equation 3).

    For theta + margin > pi, where cos(theta + margin) would rise again, return cos(theta) - margin * sin(margin), as
    the paper's implementation does.
    """
    sine = tf.sqrt(tf.maximum(1.0 - tf.square(cosine), _LEAST_SQUARED_SINE))
    is_beyond = cosine <= -tf.cos(margin)
    return tf.where(is_beyond, cosine - margin * tf.sin(margin), cosine * tf.cos(margin) - sine * tf.sin(margin))


def cosface(cosine: tf.Tensor, margin: tf.Tensor) -> tf.Tensor:
    """Return cos(theta) - margin of `[K]` cosines and margins (CosFace, Wang et al., CVPR 2018, equation 4)."""
    return cosine - margin


# Kind -> function of (cos(theta) between an image and its own class, margin) that returns the cosine with the margin.
MARGINS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {"arcface": arcface, "cosface": cosface}
CLASS_LOSSES = (SOFTMAX, *MARGINS)


class ClassLoss(keras.layers.Layer):
    """Cross entropy of an image's class, with one direction per class in the space of image vectors.

    "softmax": logits are vector W + b. Other kinds: logits are scale * cos(theta), with the angle theta between vector
    and direction, and cos(theta) of the image's own class is reduced by a margin (see `arcface`, `cosface`), which
    pulls the images of a class together.

    With rarity_power p > 0 rarer classes have larger margins (LDAM, Cao et al., NeurIPS 2019, section 3.2, uses 1/4):
    margin_c = margin * (n_min / n_c)^p, where n_c is the number of images of class c seen in training, and n_min the
    smallest n_c of the classes seen so far.

    Args:
      num_class: C.
      kind: one of CLASS_LOSSES.
      scale: factor of the cosines; not used by "softmax".
      margin: margin of the rarest class, in radians for "arcface"; not used by "softmax".
      rarity_power: p; 0 for the same margin for all classes.

    Raises:
      ValueError: if kind is unknown.
    """

    def __init__(
        self,
        num_class: int,
        kind: str = SOFTMAX,
        scale: float = 30.0,
        margin: float = 0.3,
        rarity_power: float = 0.0,
        name: str = "class_loss",
    ) -> None:
        super().__init__(name=name, dtype="float32")
        if kind not in CLASS_LOSSES:
            raise ValueError(f"kind: '{kind}'; choose one of {', '.join(CLASS_LOSSES)}")
        self._num_class, self._kind = num_class, kind
        self._scale, self._margin, self._rarity_power = scale, margin, rarity_power
        self.class_counts: keras.Variable | None = None

    def build(self, vector_shape: tuple[int | None, ...]) -> None:
        """Create the weights for vectors of this width."""
        self.kernel = self.add_weight(
            shape=(vector_shape[-1], self._num_class), initializer="glorot_uniform", name="kernel"
        )
        if self._kind == SOFTMAX:
            self.bias = self.add_weight(shape=(self._num_class,), initializer="zeros", name="bias")
        elif self._rarity_power:
            self.class_counts = self.add_weight(
                shape=(self._num_class,), initializer="zeros", trainable=False, name="class_counts"
            )

    def call(self, vector: tf.Tensor, label: tf.Tensor, counted: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the mean loss of the counted images.

        Args:
          vector: `[U, D]`.
          label: int64 `[U]`, the class of each image, from 0 to C - 1 for counted images.
          counted: bool `[U]`, whether each image is counted.
          training: whether to update the class counts, after their margins have been used.

        Returns:
          float32 scalar, 0 if no image is counted.
        """
        vector, label = tf.boolean_mask(vector, counted), tf.boolean_mask(label, counted)  # [K, D], [K]
        if self._kind == SOFTMAX:
            logits = tf.matmul(vector, self.kernel) + self.bias
        else:
            logits = self._scale * self._cosines(vector, label)
        loss = _mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
        if training and self.class_counts is not None:
            batch_counts = tf.math.unsorted_segment_sum(tf.ones_like(label, tf.float32), label, self._num_class)
            self.class_counts.assign_add(batch_counts)
        return loss

    def classes(self, vector: tf.Tensor) -> tf.Tensor:
        """Return the class int64 `[U]` whose direction is nearest to each vector `[U, D]`, without a margin."""
        logits = tf.matmul(vector if self._kind == SOFTMAX else _unit(vector), self._directions())
        return tf.argmax(logits + self.bias if self._kind == SOFTMAX else logits, axis=1)

    def _directions(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.kernel) if self._kind == SOFTMAX else _unit(self.kernel, axis=0)

    def _cosines(self, vector: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Return the cosines `[K, C]`, in which those of the images' own classes include the margin."""
        cosine = tf.matmul(_unit(vector), self._directions())
        own = tf.gather(cosine, label, batch_dims=1)  # [K]
        own = MARGINS[self._kind](own, self._margins(label))
        is_own = tf.one_hot(label, self._num_class, on_value=True, off_value=False, dtype=tf.bool)
        return tf.where(is_own, own[:, None], cosine)

    def _margins(self, label: tf.Tensor) -> tf.Tensor:
        """Return the margins of these classes, `[K]`; a scalar if all classes have the same margin."""
        if self.class_counts is None:
            return tf.constant(self._margin)
        counts = tf.convert_to_tensor(self.class_counts)
        least_count = tf.reduce_min(tf.where(counts > 0, counts, tf.float32.max))
        # A class that has not been seen before counts as the rarest one.
        ratio = tf.minimum(least_count / tf.maximum(tf.gather(counts, label), 1.0), 1.0)
        return self._margin * tf.pow(ratio, self._rarity_power)


class MultiSimilarityLoss(keras.layers.Layer):
    """Loss that attracts images of one label and repels all others, the hardest pairs most (Wang et al., CVPR 2019).

    S is the cosine of two image vectors. The kept positives of image i (other images of its label) are those whose S is
    below the highest S of its negatives + epsilon; the kept negatives are those whose S is above the lowest S of its
    positives - epsilon. The loss of image i is log(1 + sum over positives of e^(-alpha (S - base))) / alpha
    + log(1 + sum over negatives of e^(beta (S - base))) / beta.
    An image without positives or without negatives keeps no pair: its loss is 0, and it still counts in the mean.

    Args:
      alpha: as above.
      beta: as above.
      base: the paper's lambda.
      epsilon: as above.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float = 0.1,
        name: str = "multi_similarity_loss",
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self._alpha, self._beta, self._base, self._epsilon = alpha, beta, base, epsilon

    def call(self, vector: tf.Tensor, label: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
        """Return the mean loss of the counted images, with arguments and result as in ClassLoss; any label is valid."""
        unit, label = _unit(tf.boolean_mask(vector, counted)), tf.boolean_mask(label, counted)
        similarity = tf.matmul(unit, unit, transpose_b=True)  # [K, K]
        is_positive, is_negative = _others_equal(label), label[:, None] != label[None, :]
        lowest_positive = tf.reduce_min(tf.where(is_positive, similarity, float("inf")), axis=1, keepdims=True)
        highest_negative = tf.reduce_max(tf.where(is_negative, similarity, -float("inf")), axis=1, keepdims=True)
        is_positive &= similarity < highest_negative + self._epsilon
        is_negative &= similarity > lowest_positive - self._epsilon
        excess = similarity - self._base
        return _mean(
            _log_one_plus_sum_exp(-self._alpha * excess, is_positive) / self._alpha
            + _log_one_plus_sum_exp(self._beta * excess, is_negative) / self._beta
        )


class ContrastiveLoss(keras.layers.Layer):
    """Loss that attracts a picture's vector to its item's ID embedding and repels those of the batch's other items.

    InfoNCE (van den Oord et al., 2018, equation 4) in both directions, averaged: the cross entropy of picking the right
    item for a picture, and the right picture for an item, with logits cosine / temperature. The picture's vector is
    projected to the embedding's width. Another picture of the same item is not a wrong answer, so it is left out.

    Args:
      dim: width of the item embedding.
      temperature: as above.
      stop_gradient: side that gets no gradient: "item" for the embeddings, "image" for the image tower (the projection
        is still trained), "none" for neither side.

    Raises:
      ValueError: if stop_gradient is unknown.
    """

    def __init__(
        self, dim: int, temperature: float = 0.1, stop_gradient: str = "none", name: str = "contrastive_loss"
    ) -> None:
        super().__init__(name=name, dtype="float32")
        if stop_gradient not in STOP_GRADIENTS:
            raise ValueError(f"stop_gradient: '{stop_gradient}'; choose one of {', '.join(STOP_GRADIENTS)}")
        self._temperature, self._stop_gradient = temperature, stop_gradient
        self._projection = keras.layers.Dense(dim, use_bias=False, name="projection", dtype="float32")

    def build(self, vector_shape: tuple[int | None, ...]) -> None:
        """Create the projection for vectors of this width."""
        self._projection.build(vector_shape)

    def call(self, vector: tf.Tensor, item_embedding: tf.Tensor, item: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
        """Return the mean loss of the counted images.

        Args:
          vector: `[U, D]`.
          item_embedding: `[U, dim]`, the embedding of each image's item.
          item: int64 `[U]`, the id of each image's item.
          counted: bool `[U]`, whether each image is counted.

        Returns:
          float32 scalar, 0 if no image is counted or all counted images have the same item.
        """
        vector, item_embedding, item = (tf.boolean_mask(x, counted) for x in (vector, item_embedding, item))
        if self._stop_gradient == "item":
            item_embedding = tf.stop_gradient(item_embedding)
        if self._stop_gradient == "image":
            vector = tf.stop_gradient(vector)
        cosine = tf.matmul(_unit(self._projection(vector)), _unit(item_embedding), transpose_b=True)  # [K, K]
        logits = tf.where(_others_equal(item), _EXCLUDED, cosine / self._temperature)
        # TensorFlow's cross entropy rejects a batch without classes, which here is a batch without counted images.
        either = [tf.reduce_logsumexp(logits, axis=axis) for axis in (0, 1)]
        return _mean(0.5 * tf.add_n(either) - tf.linalg.diag_part(logits))


def _unit(x: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """Scale the vectors along `axis` to length 1."""
    return tf.math.l2_normalize(x, axis=axis, epsilon=_SHORTEST**2)


def _others_equal(x: tf.Tensor) -> tf.Tensor:
    """Map `[K]` to bool `[K, K]`: whether two different positions have the same value."""
    is_equal = x[:, None] == x[None, :]
    return tf.linalg.set_diag(is_equal, tf.zeros_like(x, tf.bool))


def _log_one_plus_sum_exp(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Return log(1 + sum of e^x over the positions of the mask) of each row, `[K, K]` -> `[K]`."""
    return tf.nn.softplus(tf.reduce_logsumexp(tf.where(mask, x, _EXCLUDED), axis=1))


def _mean(losses: tf.Tensor) -> tf.Tensor:
    """Return the mean of `[K]`; 0 if K is 0."""
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32))
