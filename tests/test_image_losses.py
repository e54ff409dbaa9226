"""Losses of image vectors at the edges of what they may get."""

import numpy as np
import pytest
import tensorflow as tf
from image_loss_helpers import (
    ALL,
    EMBEDDINGS,
    ITEMS,
    LABELS,
    SCALE,
    SOME,
    VECTORS,
    WIDTH,
    U,
    class_loss,
    contrastive_loss,
    gradient_of,
    loss_of,
)

from easyrec_mm.network.layers.image_losses import CLASS_LOSSES, ClassLoss, ContrastiveLoss, MultiSimilarityLoss


@pytest.fixture(params=[*CLASS_LOSSES, "pairs", "items"])
def layer(request):
    if request.param == "pairs":
        return MultiSimilarityLoss()
    if request.param == "items":
        return contrastive_loss()[0]
    return class_loss(request.param, rarity_power=0.25)[0]


@pytest.fixture
def others(layer):
    """What it takes between the vectors and which of them count."""
    return (EMBEDDINGS, ITEMS) if isinstance(layer, ContrastiveLoss) else (LABELS,)


@pytest.mark.parametrize("compiled", [False, True])
def test_no_image_counts(layer, others, compiled):
    """Neither do rows of NaN and labels that do not exist."""
    vectors = np.full((U, WIDTH), np.nan, np.float32)
    others = [*(np.full_like(x, np.nan) for x in others[:-1]), np.full(U, -1)]
    call = tf.function(layer, autograph=False) if compiled else layer
    loss, gradient = gradient_of(call, vectors, *others, np.zeros(U, bool))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_an_empty_batch(layer, others):
    loss, _ = gradient_of(layer, VECTORS[:0], *(x[:0] for x in others), ALL[:0])
    assert loss == 0


def test_images_that_do_not_count_change_nothing(layer, others):
    """The loss and the gradients are those of the counted images alone, whatever the other rows hold."""
    vectors = np.where(SOME[:, None], VECTORS, np.nan).astype(np.float32)
    alone, expected = gradient_of(layer, VECTORS[SOME], *(x[SOME] for x in others), ALL[SOME])
    spoilt = [*others[:-1], np.where(SOME, others[-1], -1)]
    loss, gradient = gradient_of(layer, vectors, *spoilt, SOME)
    assert loss == pytest.approx(alone, rel=1e-6)
    np.testing.assert_allclose(gradient[SOME], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[~SOME], 0)


def test_one_image(layer, others):
    loss, gradient = gradient_of(layer, VECTORS[:1], *(x[:1] for x in others), ALL[:1])
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    if not isinstance(layer, ClassLoss):
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-8], ids=["zero", "equal", "tiny"])
def test_collapsed_vectors(layer, others, value):
    """All the same, of length 0 too: what the losses are there to repair must not break them."""
    vectors = np.full((U, WIDTH), value, np.float32)
    loss, gradient = gradient_of(layer, vectors, *others, ALL)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e4 * SCALE


def test_one_label(layer, others):
    same = [*others[:-1], np.full(U, 1)]
    loss, gradient = gradient_of(layer, VECTORS, *same, ALL)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    if not isinstance(layer, ClassLoss):
        assert loss == pytest.approx(0, abs=1e-6)


def test_order_of_the_images_does_not_matter(layer, others):
    order = np.random.default_rng(9).permutation(U)
    loss, gradient = gradient_of(layer, VECTORS, *others, SOME)
    shuffled, moved = gradient_of(layer, VECTORS[order], *(x[order] for x in others), SOME[order])
    assert shuffled == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(moved, gradient[order], rtol=1e-4, atol=1e-6)


def test_vectors_of_bfloat16_are_used_in_float32(layer, others):
    narrow = tf.cast(VECTORS, tf.bfloat16)
    loss = layer(narrow, *(tf.constant(x) for x in others), tf.constant(ALL))
    assert loss.dtype == tf.float32
    assert {v.dtype for v in layer.weights} <= {"float32"}
    exact = loss_of(layer, tf.cast(narrow, tf.float32).numpy(), *others, ALL)
    assert float(loss) == float(exact)
