"""Auxiliary losses on the vectors of distinct images: they keep an image tower from collapsing where clicks are sparse.

Their weight beside the losses of the tasks, and where labels and items come from, is not decided here. All arithmetic
is float32. Images that do not count have no part in a loss, whatever is in their rows: neither as positives nor as
negatives. Shapes: U distinct images, K of them that count, D width of the image vector, C classes.

To add a margin to ClassLoss: a function here and its key in MARGINS.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

# A shorter vector is not stretched to length 1: the gradient of that grows as one over the length.
_SHORTEST = 1e-3
# A logit whose exponential is 0. Finite: 0 * infinity would be NaN.
_EXCLUDED = -1e9
# The rounding error of 1 - cos^2 in float32, below which the gradient of its root means nothing.
_LEAST_SQUARED_SINE = 1e-7
SOFTMAX = "softmax"
STOP_GRADIENTS = ("none", "item", "image")


def arcface(cosine: tf.Tensor, margin: tf.Tensor) -> tf.Tensor:
    """cos(theta + margin), both `[K]` (ArcFace, Deng et al., CVPR 2019, equation 3).

    Where theta + margin > pi, where that would rise again, it is cos(theta) - margin * sin(margin), as in the paper's
    implementation.
    """
    sine = tf.sqrt(tf.maximum(1.0 - tf.square(cosine), _LEAST_SQUARED_SINE))
    is_beyond = cosine <= -tf.cos(margin)
    return tf.where(is_beyond, cosine - margin * tf.sin(margin), cosine * tf.cos(margin) - sine * tf.sin(margin))


def cosface(cosine: tf.Tensor, margin: tf.Tensor) -> tf.Tensor:
    """cos(theta) - margin, both `[K]` (CosFace, Wang et al., CVPR 2018, equation 4)."""
    return cosine - margin


# Kind -> (cos(theta) between an image and its own class, margin) -> what stands in its place.
MARGINS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {"arcface": arcface, "cosface": cosface}
CLASS_LOSSES = (SOFTMAX, *MARGINS)


class ClassLoss(keras.layers.Layer):
    """Cross entropy of the image's class, over one direction a class in the space of image vectors.

    "softmax": logits are vector W + b. The others: logits are scale * cos(theta), theta between vector and direction,
    and the own class's cos(theta) is made smaller by a margin (see `arcface`, `cosface`), which pulls the images of a
    class together.

    With rarity_power p > 0 rarer classes have larger margins (LDAM, Cao et al., NeurIPS 2019, section 3.2, has 1/4):
    margin_c = margin * (n_min / n_c)^p, where n_c is the images of class c that training has seen, n_min the least of
    the classes seen so far.

    Args:
      num_class: C.
      kind: one of CLASS_LOSSES.
      scale: factor of the cosines; "softmax" has none.
      margin: of the rarest class, in radians for "arcface"; "softmax" has none.
      rarity_power: p; 0 for the same margin for all.

    Raises:
      ValueError: for an unknown kind.
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
        """Create the weights, for vectors of this width."""
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
        """Mean loss of the images that count.

        Args:
          vector: `[U, D]`.
          label: int64 `[U]`, the class; of an image that counts from 0 to C - 1.
          counted: bool `[U]`, whether an image counts.
          training: whether to count the classes, after their margins have been used.

        Returns:
          float32 scalar, 0 if no image counts.
        """
        vector, label = tf.boolean_mask(vector, counted), tf.boolean_mask(label, counted)  # [K, D], [K]
        if self._kind == SOFTMAX:
            logits = tf.matmul(vector, self.kernel) + self.bias
        else:
            logits = self._scale * self._cosines(vector, label)
        loss = _mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
        if training and self.class_counts is not None:
            seen = tf.math.unsorted_segment_sum(tf.ones_like(label, tf.float32), label, self._num_class)
            self.class_counts.assign_add(seen)
        return loss

    def _cosines(self, vector: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Cosines `[K, C]`, those of the own classes with their margins."""
        cosine = tf.matmul(_unit(vector), _unit(self.kernel, axis=0))
        own = tf.gather(cosine, label, batch_dims=1)  # [K]
        own = MARGINS[self._kind](own, self._margins(label))
        is_own = tf.one_hot(label, self._num_class, on_value=True, off_value=False, dtype=tf.bool)
        return tf.where(is_own, own[:, None], cosine)

    def _margins(self, label: tf.Tensor) -> tf.Tensor:
        """Margins of these classes, `[K]`; a scalar where all have the same."""
        if self.class_counts is None:
            return tf.constant(self._margin)
        counts = tf.convert_to_tensor(self.class_counts)
        seen = tf.reduce_min(tf.where(counts > 0, counts, tf.float32.max))
        # The first images of a class find it the rarest.
        ratio = tf.minimum(seen / tf.maximum(tf.gather(counts, label), 1.0), 1.0)
        return self._margin * tf.pow(ratio, self._rarity_power)


class MultiSimilarityLoss(keras.layers.Layer):
    """Images of a label towards each other, others apart, the hardest pairs most (Wang et al., CVPR 2019).

    S is the cosine of two image vectors. Of image i's positives (other images of its label) those are kept whose S is
    below the highest of its negatives + epsilon, of its negatives those above the lowest of its positives - epsilon.
    Its loss is log(1 + sum over positives of e^(-alpha (S - base))) / alpha
    + log(1 + sum over negatives of e^(beta (S - base))) / beta.
    An image without positives or without negatives keeps no pair: its own loss is 0, and it is still in the mean.

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
        """Mean loss of the images that count: float32 scalar, 0 if none does; arguments as of ClassLoss, any label."""
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
    """A picture's vector towards the ID embedding of its item, away from those of the batch's other items.

    InfoNCE (van den Oord et al., 2018, equation 4) in both directions, averaged: the cross entropy of picking the own
    item for a picture, and the own picture for an item, by cosine / temperature. The picture's vector is projected to
    the embedding's width. Another picture of the same item is not a wrong answer: it is left out.

    Args:
      dim: width of the item embedding.
      temperature: as above.
      stop_gradient: side that gets no gradient: "item" leaves the embeddings alone, "image" the image tower (the
        projection is trained even so), "none" neither.

    Raises:
      ValueError: for an unknown stop_gradient.
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
        """Create the projection, for vectors of this width."""
        self._projection.build(vector_shape)

    def call(self, vector: tf.Tensor, item_embedding: tf.Tensor, item: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
        """Mean loss of the images that count.

        Args:
          vector: `[U, D]`.
          item_embedding: `[U, dim]`, the embedding of each image's item.
          item: int64 `[U]`, its id.
          counted: bool `[U]`, whether an image counts.

        Returns:
          float32 scalar, 0 if no image counts, or no two of different items.
        """
        vector, item_embedding, item = (tf.boolean_mask(x, counted) for x in (vector, item_embedding, item))
        if self._stop_gradient == "item":
            item_embedding = tf.stop_gradient(item_embedding)
        if self._stop_gradient == "image":
            vector = tf.stop_gradient(vector)
        cosine = tf.matmul(_unit(self._projection(vector)), _unit(item_embedding), transpose_b=True)  # [K, K]
        logits = tf.where(_others_equal(item), _EXCLUDED, cosine / self._temperature)
        # Not by TensorFlow's cross entropy, which takes no batch without classes: here that is one without images.
        either = [tf.reduce_logsumexp(logits, axis=axis) for axis in (0, 1)]
        return _mean(0.5 * tf.add_n(either) - tf.linalg.diag_part(logits))


def _unit(x: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """Vectors along `axis`, at length 1."""
    return tf.math.l2_normalize(x, axis=axis, epsilon=_SHORTEST**2)


def _others_equal(x: tf.Tensor) -> tf.Tensor:
    """`[K]` -> bool `[K, K]`: whether two different places hold the same."""
    is_equal = x[:, None] == x[None, :]
    return tf.linalg.set_diag(is_equal, tf.zeros_like(x, tf.bool))


def _log_one_plus_sum_exp(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """log(1 + sum of e^x over the places of the mask) of each row, `[K, K]` -> `[K]`."""
    return tf.nn.softplus(tf.reduce_logsumexp(tf.where(mask, x, _EXCLUDED), axis=1))


def _mean(losses: tf.Tensor) -> tf.Tensor:
    """`[K]` -> scalar; 0 of none."""
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32))
