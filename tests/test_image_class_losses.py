"""Losses of image vectors by class against NumPy float64: with margins, which may follow the images seen."""

import numpy as np
import pytest
import tensorflow as tf
from image_loss_helpers import (
    ALL,
    LABELS,
    MARGIN,
    NUM_CLASS,
    SCALE,
    SOME,
    VECTORS,
    WIDTH,
    U,
    assert_gradient,
    class_loss,
    cross_entropy,
    gradient_of,
    loss_of,
    unit,
)
from layer_helpers import random

from easyrec_mm.network.layers.image_losses import CLASS_LOSSES, ClassLoss, arcface


def class_reference(kind, vectors, labels, mask, kernel, bias=0.0, margins=MARGIN):
    margins = np.broadcast_to(margins, NUM_CLASS)
    losses = []
    for vector, label in zip(vectors[mask].astype(np.float64), labels[mask], strict=True):
        logits = vector @ kernel + bias
        if kind != "softmax":
            theta = np.arccos(unit(vector) @ unit(kernel.T).T)
            own, margin = theta[label], margins[label]
            logits = np.cos(theta)
            if kind == "cosface":
                logits[label] = np.cos(own) - margin
            elif own + margin < np.pi:
                logits[label] = np.cos(own + margin)
            else:
                logits[label] = np.cos(own) - margin * np.sin(margin)
            logits = SCALE * logits
        losses.append(cross_entropy(logits, label))
    return np.mean(losses)


@pytest.mark.parametrize("kind", CLASS_LOSSES)
@pytest.mark.parametrize("mask", [ALL, SOME], ids=["all", "some"])
def test_class_loss(kind, mask):
    layer, kernel = class_loss(kind)
    bias = layer.bias.numpy() if kind == "softmax" else 0.0

    def reference(vectors):
        return class_reference(kind, vectors, LABELS, mask, kernel, bias)

    loss, gradient = gradient_of(layer, VECTORS, LABELS, mask)
    assert loss == pytest.approx(reference(VECTORS), rel=1e-5)
    assert_gradient(reference, VECTORS, gradient)
    np.testing.assert_array_equal(gradient[~mask], 0)


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_gradient_of_the_class_directions(kind):
    layer, kernel = class_loss(kind)
    bias = layer.bias.numpy() if kind == "softmax" else 0.0
    with tf.GradientTape() as tape:
        loss = loss_of(layer, VECTORS, LABELS, ALL)
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    assert_gradient(lambda k: class_reference(kind, VECTORS, LABELS, ALL, k, bias), kernel, gradient)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0])
def test_arcface_falls_as_the_angle_grows(margin):
    """Also beyond pi - margin, where cos(theta + margin) itself rises again."""
    theta = np.linspace(0.0, np.pi, 2001)
    value = arcface(tf.constant(np.cos(theta), tf.float32), tf.constant(margin, tf.float32)).numpy()
    assert (np.diff(value) < 1e-6).all()
    inside = theta + margin < np.pi - 1e-3
    np.testing.assert_allclose(value[inside], np.cos(theta + margin)[inside], atol=2e-3 * margin)
    beyond = theta + margin > np.pi + 1e-3
    np.testing.assert_allclose(value[beyond], (np.cos(theta) - margin * np.sin(margin))[beyond], atol=1e-6)


def test_arcface_beyond_pi():
    """An image opposite to its class, in the whole loss."""
    layer, kernel = class_loss("arcface")
    vectors = (-kernel.T[LABELS] + 0.05 * random(U, WIDTH)).astype(np.float32)
    theta = np.arccos(np.sum(unit(vectors) * unit(kernel.T)[LABELS], axis=1))
    assert (theta + MARGIN > np.pi).all()

    def reference(x):
        return class_reference("arcface", x, LABELS, ALL, kernel)

    loss, gradient = gradient_of(layer, vectors, LABELS, ALL)
    assert loss == pytest.approx(reference(vectors), rel=1e-5)
    assert_gradient(reference, vectors, gradient)


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_gradients_at_the_class_and_opposite_to_it_are_finite(kind):
    """There the sine is 0, and its root has no gradient."""
    layer, kernel = class_loss(kind)
    for sign in (1.0, -1.0):
        loss, gradient = gradient_of(layer, (sign * kernel.T).astype(np.float32), np.arange(NUM_CLASS), ALL[:NUM_CLASS])
        assert np.isfinite(loss)
        assert np.abs(gradient).max() < 10


def test_margins_make_the_loss_harder():
    for kind in ("arcface", "cosface"):
        losses = [float(loss_of(class_loss(kind, margin=m)[0], VECTORS, LABELS, ALL)) for m in (0.0, 0.2, 0.4)]
        assert losses == sorted(losses)
        assert losses[0] < losses[1] < losses[2]
        assert losses[0] == pytest.approx(
            class_reference(kind, VECTORS, LABELS, ALL, class_loss(kind)[1], margins=0.0), rel=1e-5
        )


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_descent_separates_the_classes(kind):
    """Of free vectors: a class's become alike, and with a margin more so than any two of different classes."""
    layer, _ = class_loss(kind)
    vectors = tf.Variable(VECTORS)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = layer(vectors, tf.constant(LABELS), tf.constant(ALL), training=True)
        variables = [vectors, *(v.value for v in layer.trainable_weights)]
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.5 * gradient)
        return loss

    losses = [float(step()) for _ in range(200)]
    assert losses[-1] < 0.2 * losses[0]
    x = unit(vectors.numpy())
    alike = x @ x.T
    same = LABELS[:, None] == LABELS[None, :]
    assert alike[same].mean() > alike[~same].mean() + 0.5
    if kind != "softmax":
        assert alike[same].min() > alike[~same].max() + 0.3


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind: 'sphereface'; choose one of softmax, arcface, cosface"):
        ClassLoss(3, "sphereface")


# Margins by rarity


def test_margins_follow_the_images_seen():
    """Used before the step's own images are counted; larger for rarer classes; images that do not count, do not."""
    power = 0.25
    layer, kernel = class_loss("cosface", rarity_power=power)
    seen = np.zeros(NUM_CLASS)
    margins = []
    for step in range(3):
        mask = SOME if step == 1 else ALL
        loss = float(loss_of(layer, VECTORS, LABELS, mask, training=True))
        rarest = seen[seen > 0].min() if seen.any() else 1
        margins = MARGIN * np.minimum(rarest / np.maximum(seen, 1), 1) ** power
        expected = class_reference("cosface", VECTORS, LABELS, mask, kernel, margins=margins)
        assert loss == pytest.approx(expected, rel=1e-5)
        seen += np.bincount(LABELS[mask], minlength=NUM_CLASS)
        np.testing.assert_array_equal(layer.class_counts.numpy(), seen)
    assert seen.tolist() == [6, 5, 8, 0]
    assert MARGIN == margins[3] == margins[1] > margins[0] > margins[2]


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_counts_stay_outside_of_training(kind):
    layer, kernel = class_loss(kind, rarity_power=0.5)
    layer.class_counts.assign([8.0, 0.0, 3.0, 24.0])
    loss = float(loss_of(layer, VECTORS, LABELS, ALL))
    margins = MARGIN * np.array([3 / 8, 1.0, 1.0, 3 / 24]) ** 0.5
    assert loss == pytest.approx(class_reference(kind, VECTORS, LABELS, ALL, kernel, margins=margins), rel=1e-5)
    np.testing.assert_array_equal(layer.class_counts.numpy(), [8, 0, 3, 24])


def test_counts_in_a_compiled_step():
    layer, _ = class_loss("arcface", rarity_power=0.25)
    step = tf.function(lambda *x: layer(*x, training=True), autograph=False)
    other, _ = class_loss("arcface", rarity_power=0.25)
    for _ in range(2):
        compiled = float(step(tf.constant(VECTORS), tf.constant(LABELS), tf.constant(SOME)))
        assert compiled == pytest.approx(float(loss_of(other, VECTORS, LABELS, SOME, training=True)), rel=1e-6)
    np.testing.assert_array_equal(layer.class_counts.numpy(), 2 * np.bincount(LABELS[SOME], minlength=NUM_CLASS))


def test_only_margins_that_differ_need_counts():
    def names(**settings):
        layer, _ = class_loss(**settings)
        return [v.path for v in layer.trainable_weights], [v.path for v in layer.non_trainable_weights]

    assert names(kind="softmax", rarity_power=0.25) == (["class_loss/kernel", "class_loss/bias"], [])
    assert names(kind="arcface") == (["class_loss/kernel"], [])
    assert names(kind="arcface", rarity_power=0.25) == (["class_loss/kernel"], ["class_loss/class_counts"])
