"""Vectors of images, losses on them, and their gradients."""

import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import random

from easyrec_mm.network.layers.image_losses import ClassLoss, ContrastiveLoss

U, WIDTH, NUM_CLASS, DIM = 7, 5, 4, 3
LABELS = np.array([0, 2, 2, 1, 0, 2, 1])
ITEMS = np.array([11, 12, 13, 12, 14, 12, 15])
ALL = np.ones(U, bool)
SOME = np.array([True, False, True, True, True, True, False])


VECTORS, EMBEDDINGS = random(U, WIDTH, seed=1), random(U, DIM, seed=2)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(logits, own):
    return np.log(np.sum(np.exp(logits))) - logits[own]


def loss_of(layer, vectors, *others, **settings):
    """A loss of arrays."""
    return layer(tf.constant(vectors), *(tf.constant(x) for x in others), **settings)


def gradient_of(layer, vectors, *others, **settings):
    """The loss and its gradient by the vectors."""
    x = tf.constant(vectors)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = layer(x, *(tf.constant(value) for value in others), **settings)
    return float(loss), tape.gradient(loss, x).numpy()


def assert_gradient(function, at, gradient, rel=1e-3):
    """Against central differences of a float64 function, in some directions."""
    rng = np.random.default_rng(8)
    at = at.astype(np.float64)
    for _ in range(5):
        direction = rng.normal(size=at.shape)
        expected = (function(at + 1e-6 * direction) - function(at - 1e-6 * direction)) / 2e-6
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=rel, abs=1e-4)


# Classes

SCALE, MARGIN = 8.0, 0.4


def class_loss(kind, **settings):
    """A layer with classes in random directions, which are also returned in float64."""
    layer = ClassLoss(NUM_CLASS, kind, **{"scale": SCALE, "margin": MARGIN, **settings})
    layer.build((None, WIDTH))
    layer.kernel.assign(random(WIDTH, NUM_CLASS, seed=3))
    if kind == "softmax":
        layer.bias.assign(random(NUM_CLASS, seed=4))
    return layer, layer.kernel.numpy().astype(np.float64)


# Pictures and items

TEMPERATURE = 0.2


def contrastive_loss(**settings):
    """A layer with a random projection, which is also returned in float64."""
    layer = ContrastiveLoss(DIM, **{"temperature": TEMPERATURE, **settings})
    layer.build((None, WIDTH))
    (kernel,) = layer.weights
    assert kernel.path == "contrastive_loss/projection/kernel"
    kernel.assign(random(WIDTH, DIM, seed=6))
    return layer, kernel.numpy().astype(np.float64)
