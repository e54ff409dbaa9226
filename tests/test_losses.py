"""Every loss against NumPy float64, and the places where a formula in floating point breaks."""

import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import sigmoid

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.network.losses import (
    LOSSES,
    binary_focal,
    classification,
    sigmoid_squared_error,
    squared_error,
    weighted_mean,
)
from easyrec_mm.protos.loss_pb2 import LossType

ALONE = Replicas()


def cross_entropy(labels, logits):
    p = sigmoid(logits)
    return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))


def samples(num_samples=200, scale=3.0, seed=0):
    """Labels 0 or 1 and logits [S, 1], as float32."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 2, num_samples).astype(np.float32),
        (scale * rng.normal(size=(num_samples, 1))).astype(np.float32),
    )


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


def assert_near(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_every_loss_type_has_a_function():
    assert LOSSES.keys() == set(LossType.keys())


def test_binary_classification():
    labels, logits = samples()
    y, x = wide(labels, logits[:, 0])
    assert_near(classification(labels, tf.constant(logits)), cross_entropy(y, x))


def test_binary_classification_with_extreme_logits():
    """No logarithm of 0: the loss of a wrong, certain answer is the logit."""
    logits = tf.constant([[200.0], [-200.0], [200.0], [-200.0]])
    loss = classification(tf.constant([0.0, 1.0, 1.0, 0.0]), logits)
    np.testing.assert_array_equal(loss.numpy(), [200, 200, 0, 0])


def test_classification_of_several_classes():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 100)
    logits = (3 * rng.normal(size=(100, 4))).astype(np.float32)
    x = logits.astype(np.float64)
    probabilities = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(100), labels])
    assert_near(classification(tf.constant(labels, tf.float32), tf.constant(logits)), expected)


def test_squared_errors():
    rng = np.random.default_rng(2)
    labels = rng.normal(size=50).astype(np.float32)
    logits = rng.normal(size=(50, 1)).astype(np.float32)
    y, x = wide(labels, logits[:, 0])
    assert_near(squared_error(labels, tf.constant(logits)), (x - y) ** 2)
    assert_near(sigmoid_squared_error(labels, tf.constant(logits)), (sigmoid(x) - y) ** 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0])
def test_focal(gamma, alpha):
    """Lin et al., equation 5: -alpha_t (1 - p_t)^gamma log(p_t)."""
    labels, logits = samples()
    y, x = wide(labels, logits[:, 0])
    p_t = np.where(y == 1, sigmoid(x), 1 - sigmoid(x))
    alpha_t = 1.0 if alpha is None else np.where(y == 1, alpha, 1 - alpha)
    expected = -alpha_t * (1 - p_t) ** gamma * np.log(p_t)
    assert_near(binary_focal(tf.constant(labels), tf.constant(logits), gamma, alpha), expected)


def test_focal_defaults_are_those_of_the_config():
    labels, logits = samples(10)
    default = binary_focal(tf.constant(labels), tf.constant(logits))
    np.testing.assert_array_equal(default, binary_focal(tf.constant(labels), tf.constant(logits), 2.0, None))


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.5, 1.0, 2.0])
def test_focal_where_the_probability_is_0_or_1(gamma):
    """In float32 sigmoid(20) is 1: the sample is easy, its loss nearly 0, and its gradient a number."""
    labels = tf.constant([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    logits = tf.constant([[20.0], [-20.0], [200.0], [-200.0], [-200.0], [200.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = binary_focal(labels, logits, gamma)
    gradient = tape.gradient(loss, logits).numpy()[:, 0]
    np.testing.assert_allclose(loss[:4], np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(gradient[:4], np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(loss[4:], [200, 200], rtol=1e-6)
    np.testing.assert_allclose(gradient[4:], [-1, 1], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.3])
def test_focal_gradient(gamma, alpha):
    """Against differences of the formula in float64."""
    labels, logits = samples(60)
    y, x = wide(labels, logits[:, 0])

    def reference(x):
        p_t = np.where(y == 1, sigmoid(x), 1 - sigmoid(x))
        return -(1 if alpha is None else np.where(y == 1, alpha, 1 - alpha)) * (1 - p_t) ** gamma * np.log(p_t)

    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = binary_focal(tf.constant(labels), logits, gamma, alpha)
    h = 1e-6
    expected = (reference(x + h) - reference(x - h)) / (2 * h)
    np.testing.assert_allclose(tape.gradient(loss, logits)[:, 0], expected, rtol=1e-3, atol=1e-5)


def test_weighted_mean():
    """The divisor counts the samples whose weight is not zero, whatever the weights are."""
    assert float(weighted_mean(tf.constant([1.0, 2.0, 3.0]), tf.ones(3), ALONE)) == 2.0
    assert float(weighted_mean(tf.constant([1.0, 2.0, 3.0]), tf.fill(3, 10.0), ALONE)) == 20.0
    weights = tf.constant([0.5, 0.0, 0.0, 1.5])
    assert float(weighted_mean(tf.constant([1.0, 2.0, 3.0, 5.0]), weights, ALONE)) == 4.0


def test_weighted_mean_of_nothing_is_zero():
    losses, weights = tf.constant([1.0, 2.0]), tf.zeros(2)
    with tf.GradientTape() as tape:
        tape.watch(losses)
        mean = weighted_mean(losses, weights, ALONE)
    assert float(mean) == 0.0
    np.testing.assert_array_equal(tape.gradient(mean, losses), [0.0, 0.0])
    assert float(weighted_mean(tf.zeros(0), tf.zeros(0), ALONE)) == 0.0
