"""Losses of image vectors by pairs, and with items, against NumPy float64, one image at a time."""

import numpy as np
import pytest
import tensorflow as tf
from image_loss_helpers import (
    ALL,
    EMBEDDINGS,
    ITEMS,
    LABELS,
    NUM_CLASS,
    SOME,
    TEMPERATURE,
    VECTORS,
    WIDTH,
    U,
    assert_gradient,
    contrastive_loss,
    cross_entropy,
    gradient_of,
    loss_of,
    unit,
)
from layer_helpers import random

from easyrec_mm.network.layers.image_losses import ContrastiveLoss, MultiSimilarityLoss

# Pairs

PAIR_SETTINGS = {"alpha": 2.0, "beta": 20.0, "base": 0.4, "epsilon": 0.1}
# Labels that overlap somewhat, so that every image has pairs to keep and pairs to leave.
PAIR_LABELS = np.arange(16) % NUM_CLASS
PAIR_VECTORS = random(NUM_CLASS, WIDTH, seed=5)[PAIR_LABELS] + 0.6 * random(16, WIDTH, seed=6)
PAIR_MASK = np.arange(16) % 5 != 2


def pair_reference(vectors, labels, mask, alpha, beta, base, epsilon):
    x, labels = unit(vectors[mask].astype(np.float64)), labels[mask]
    losses = []
    for i in range(len(x)):
        similarity = x @ x[i]
        positives = [similarity[k] for k in range(len(x)) if labels[k] == labels[i] and k != i]
        negatives = [similarity[k] for k in range(len(x)) if labels[k] != labels[i]]
        if not positives or not negatives:
            losses.append(0.0)
            continue
        hard_positives = [s for s in positives if s < max(negatives) + epsilon]
        hard_negatives = [s for s in negatives if s > min(positives) - epsilon]
        loss = np.log1p(sum(np.exp(-alpha * (s - base)) for s in hard_positives)) / alpha
        losses.append(loss + np.log1p(sum(np.exp(beta * (s - base)) for s in hard_negatives)) / beta)
    return np.mean(losses)


@pytest.mark.parametrize("changed", [{}, {"epsilon": 0.0}, {"beta": 50.0}, {"alpha": 3.0, "base": 0.8}], ids=str)
@pytest.mark.parametrize("mask", [np.ones(16, bool), PAIR_MASK], ids=["all", "some"])
def test_multi_similarity_loss(changed, mask):
    settings = {**PAIR_SETTINGS, **changed}
    layer = MultiSimilarityLoss(**settings)

    def reference(vectors):
        return pair_reference(vectors, PAIR_LABELS, mask, **settings)

    loss, gradient = gradient_of(layer, PAIR_VECTORS, PAIR_LABELS, mask)
    assert loss == pytest.approx(reference(PAIR_VECTORS), rel=1e-5)
    assert_gradient(reference, PAIR_VECTORS, gradient)
    np.testing.assert_array_equal(gradient[~mask], 0)


def test_epsilon_decides_how_many_pairs_are_kept():
    """A larger one keeps more; from 2 on all, for two cosines differ by no more."""
    losses = []
    for epsilon in (0.0, 0.1, 0.4, 2.0, 3.0):
        settings = {**PAIR_SETTINGS, "epsilon": epsilon}
        losses.append(float(loss_of(MultiSimilarityLoss(**settings), PAIR_VECTORS, PAIR_LABELS, np.ones(16, bool))))
    assert losses[0] < losses[1] < losses[2] < losses[3] == losses[4]
    x = unit(PAIR_VECTORS)
    excess = x @ x.T - PAIR_SETTINGS["base"]
    same = PAIR_LABELS[:, None] == PAIR_LABELS
    pulls = np.log1p(np.sum(np.exp(-2.0 * excess) * (same & ~np.eye(16, dtype=bool)), axis=1)) / 2.0
    pushes = np.log1p(np.sum(np.exp(20.0 * excess) * ~same, axis=1)) / 20.0
    assert losses[3] == pytest.approx(np.mean(pulls + pushes), rel=1e-5)


def test_separated_labels_have_no_loss():
    """Every positive nearer than every negative by more than epsilon."""
    vectors = np.eye(WIDTH, dtype=np.float32)[LABELS] + 0.01 * VECTORS
    loss, gradient = gradient_of(MultiSimilarityLoss(), vectors, LABELS, ALL)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_label_with_one_image_pushes_others_only():
    """It keeps no pair itself, and is a negative of the images that have a positive."""
    labels = np.array([0, 0, 1])
    vectors = random(3, WIDTH, seed=5)
    layer = MultiSimilarityLoss(**PAIR_SETTINGS)
    loss, gradient = gradient_of(layer, vectors, labels, ALL[:3])
    assert loss == pytest.approx(pair_reference(vectors, labels, ALL[:3], **PAIR_SETTINGS), rel=1e-5)
    assert np.abs(gradient[2]).max() > 1e-3


def test_identical_vectors_of_different_labels():
    """The largest exponent that there is: finite even where e to its power is not in float32."""
    vectors = np.ones((4, WIDTH), np.float32)
    labels = np.array([0, 0, 1, 1])
    for beta in (50.0, 1000.0):
        loss, gradient = gradient_of(MultiSimilarityLoss(beta=beta), vectors, labels, ALL[:4])
        expected = np.log1p(np.exp(-1.0)) / 2 + 0.5 + np.log(2) / beta
        assert loss == pytest.approx(expected, rel=1e-5)
        assert np.isfinite(gradient).all()


# Pictures and items


def contrastive_reference(vectors, embeddings, items, mask, kernel):
    images, embeddings = unit(vectors[mask].astype(np.float64) @ kernel), unit(embeddings[mask].astype(np.float64))
    items = items[mask]
    losses = []
    for i in range(len(items)):
        others = [k for k in range(len(items)) if items[k] != items[i]]
        for anchor, candidates in ((images[i], embeddings), (embeddings[i], images)):
            logits = np.array([anchor @ candidates[k] for k in (i, *others)]) / TEMPERATURE
            losses.append(cross_entropy(logits, 0))
    return np.mean(losses)


@pytest.mark.parametrize("mask", [ALL, SOME], ids=["all", "some"])
def test_contrastive_loss(mask):
    """Items 12 of three pictures are no negatives of each other."""
    layer, kernel = contrastive_loss()
    embeddings = EMBEDDINGS[np.unique(ITEMS, return_inverse=True)[1]]
    x = [tf.constant(value) for value in (VECTORS, embeddings)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = layer(*x, tf.constant(ITEMS), tf.constant(mask))
    gradients = [g.numpy() for g in tape.gradient(loss, [*x, layer.weights[0].value])]
    assert float(loss) == pytest.approx(contrastive_reference(VECTORS, embeddings, ITEMS, mask, kernel), rel=1e-5)
    assert_gradient(lambda v: contrastive_reference(v, embeddings, ITEMS, mask, kernel), VECTORS, gradients[0])
    assert_gradient(lambda e: contrastive_reference(VECTORS, e, ITEMS, mask, kernel), embeddings, gradients[1])
    assert_gradient(lambda k: contrastive_reference(VECTORS, embeddings, ITEMS, mask, k), kernel, gradients[2])
    for gradient in gradients[:2]:
        np.testing.assert_array_equal(gradient[~mask], 0)


def test_pictures_of_one_item_alone():
    """No wrong answer to choose: no loss."""
    layer, _ = contrastive_loss()
    same = np.full(U, 12)
    loss, gradient = gradient_of(layer, VECTORS, EMBEDDINGS, same, ALL)
    assert loss == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize(("stop_gradient", "moved"), [
    ("none", (True, True, True)), ("item", (True, False, True)), ("image", (False, True, True)),
])  # fmt: skip
def test_stop_gradient(stop_gradient, moved):
    """The same loss; one side without gradient, the other with the gradient that it has otherwise."""
    x = [tf.constant(value) for value in (VECTORS, EMBEDDINGS)]

    def gradients(layer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = layer(*x, tf.constant(ITEMS), tf.constant(ALL))
        return float(loss), tape.gradient(loss, [*x, layer.weights[0].value])

    loss, expected = gradients(contrastive_loss()[0])
    same_loss, actual = gradients(contrastive_loss(stop_gradient=stop_gradient)[0])
    assert same_loss == loss
    assert tuple(gradient is not None for gradient in actual) == moved
    for gradient, full in zip(actual, expected, strict=True):
        assert np.abs(full).max() > 1e-3
        if gradient is not None:
            np.testing.assert_allclose(gradient, full, rtol=1e-5, atol=1e-6)


def test_unknown_stop_gradient():
    with pytest.raises(ValueError, match="stop_gradient: 'both'; choose one of none, item, image"):
        ContrastiveLoss(3, stop_gradient="both")
