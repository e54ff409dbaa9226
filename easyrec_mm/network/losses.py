"""Losses of a task. To add one, add a function here, its key in LOSSES and a LossType value in protos/loss.proto."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas

# (labels [S], logits [S, num_class], parameters) -> loss per sample [S].
SampleLoss = Callable[..., tf.Tensor]


def classification(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the cross entropy: sigmoid for one logit, softmax for several (labels are then class indices)."""
    if logits.shape[1] == 1:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels, logits[:, 0])
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def squared_error(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return (y - label)^2."""
    return tf.square(logits[:, 0] - labels)


def sigmoid_squared_error(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return (sigmoid(x) - label)^2."""
    return tf.square(tf.sigmoid(logits[:, 0]) - labels)


def binary_focal(labels: tf.Tensor, logits: tf.Tensor, gamma: float = 2.0, alpha: float | None = None) -> tf.Tensor:
    """Return the focal loss (Lin et al., ICCV 2017, equation 5): alpha_t (1 - p_t)^gamma * cross entropy."""
    logits = logits[:, 0]
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    probability = tf.sigmoid(logits)
    probability_of_label = labels * probability + (1.0 - labels) * (1.0 - probability)
    # For gamma < 1 the gradient of the power is infinite at 0 and would make the total gradient NaN.
    loss = tf.pow(tf.maximum(1.0 - probability_of_label, 1e-7), gamma) * cross_entropy
    if alpha is not None:
        loss *= labels * alpha + (1.0 - labels) * (1.0 - alpha)
    return loss


LOSSES: dict[str, SampleLoss] = {
    "CLASSIFICATION": classification,
    "L2_LOSS": squared_error,
    "SIGMOID_L2_LOSS": sigmoid_squared_error,
    "BINARY_FOCAL_LOSS": binary_focal,
}


def weighted_mean(losses: tf.Tensor, weights: tf.Tensor, replicas: Replicas) -> tf.Tensor:
    """Return sum(weight * loss) / number of samples with a nonzero weight; 0 if there are no such samples.

    Args:
      losses: `[S]`.
      weights: `[S]`.
      replicas: the replicas whose samples are counted; the sum of their results is the mean over all samples.
    """
    num_present = replicas.sum(tf.math.count_nonzero(weights, dtype=tf.float32))
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), num_present)
