"""Items of several pictures or of none: pooling, the vector for no image, and modality dropout."""

import numpy as np
import pytest
import tensorflow as tf
from image_tower_helpers import D
from layer_helpers import random

from easyrec_mm.network.layers.item_image import ItemImage

IMAGE = np.array([0, 0, 2, 3, 3, 3])
VECTORS = random(6, D, seed=9)


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def pooled_reference(pooling, item):
    w = {v.path: v.numpy().astype(np.float64) for v in item.variables}
    expected = np.zeros((5, D))
    for i in set(IMAGE):
        own = VECTORS[i == IMAGE].astype(np.float64)
        if pooling == "MEAN":
            expected[i] = own.mean(axis=0)
        elif pooling == "MAX":
            expected[i] = own.max(axis=0)
        else:
            hidden = np.tanh(own @ w["attention_hidden/kernel"] + w["attention_hidden/bias"])
            scores = hidden @ w["attention_score/kernel"][:, 0] + w["attention_score/bias"]
            expected[i] = softmax(scores) @ own
    return expected


@pytest.mark.parametrize("pooling", ["MEAN", "MAX", "ATTENTION"])
def test_pictures_of_an_item(pooling):
    """Zeros for images 1 and 4, which have none; also of negative vectors."""
    item = ItemImage(D, pooling)
    for i, v in enumerate(item.variables):
        v.assign(random(*v.shape, seed=i))
    actual = item.pooled(tf.constant(VECTORS), tf.constant(IMAGE, tf.int32), 5)
    np.testing.assert_allclose(actual, pooled_reference(pooling, item), rtol=1e-5, atol=1e-6)
    negative = ItemImage(D, "MAX").pooled(-tf.abs(VECTORS), tf.constant(IMAGE, tf.int32), 5).numpy()
    assert (negative[[0, 2, 3]] < 0).all()
    assert (negative[[1, 4]] == 0).all()


def test_attention_over_pictures_of_large_scores():
    """They do not overflow."""
    item = ItemImage(D, "ATTENTION")
    for v in item.variables:
        v.assign(1000 * random(*v.shape, seed=4))
    actual = item.pooled(tf.constant(VECTORS), tf.constant(IMAGE, tf.int32), 5)
    np.testing.assert_allclose(actual, pooled_reference("ATTENTION", item), rtol=1e-4, atol=1e-5)


def test_gradient_of_attention_over_pictures():
    """Of vectors and weights, against that of the formula, item by item."""
    item = ItemImage(D, "ATTENTION")
    for i, v in enumerate(item.variables):
        v.assign(random(*v.shape, seed=i))
    vectors, upstream = tf.constant(VECTORS), random(5, D, seed=7)
    sources = [vectors, *(v.value for v in item.variables)]
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        loss = tf.reduce_sum(item.pooled(vectors, tf.constant(IMAGE, tf.int32), 5) * upstream)
    actual = tape.gradient(loss, sources)
    hidden, hidden_bias, score, score_bias = sources[1:]
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        loss = 0.0
        for i in (0, 2, 3):
            own = tf.boolean_mask(vectors, i == IMAGE)
            scores = tf.tanh(own @ hidden + hidden_bias) @ score + score_bias
            loss += tf.reduce_sum(own * tf.nn.softmax(scores, axis=0) * upstream[i])
    for gradient, expected in zip(actual, tape.gradient(loss, sources), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_one_picture_an_item():
    """The vector itself, or zeros."""
    image = tf.constant([2, 0], tf.int32)
    expected = [VECTORS[1], np.zeros(D), VECTORS[0]]
    np.testing.assert_array_equal(ItemImage(D).pooled(tf.constant(VECTORS[:2]), image, 3), expected)


@pytest.mark.parametrize("pooling", ["", "MEAN", "MAX", "ATTENTION"])
def test_items_that_have_no_pictures_at_all(pooling):
    item = ItemImage(D, pooling)
    pooled = item.pooled(tf.zeros([0, D]), tf.zeros([0], tf.int32), 3)
    np.testing.assert_array_equal(pooled, np.zeros((3, D)))


def test_no_image_vector():
    """It stands where there is no picture, and learns from there alone."""
    item = ItemImage(D, has_no_image_vector=True)
    (vector,) = item.trainable_variables
    np.testing.assert_array_equal(vector, np.zeros(D))
    vector.assign(random(D, seed=1))
    vectors, has_picture = tf.constant(VECTORS), tf.constant([True, False, True, True, False, False])
    upstream = random(6, D, seed=2)
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        shown = item(vectors, has_picture, training=True)
        loss = tf.reduce_sum(shown * upstream)
    expected = np.where(has_picture.numpy()[:, None], VECTORS, vector.numpy())
    np.testing.assert_array_equal(shown, expected)
    of_vectors, of_vector = tape.gradient(loss, [vectors, vector.value])
    np.testing.assert_allclose(of_vectors, upstream * has_picture.numpy()[:, None], rtol=1e-6)
    np.testing.assert_allclose(of_vector, upstream[[1, 4, 5]].sum(axis=0), rtol=1e-5)


def test_without_a_no_image_vector_vectors_stay():
    item = ItemImage(D)
    assert not item.variables
    vectors = tf.constant(VECTORS)
    np.testing.assert_array_equal(item(vectors, tf.zeros([6], tf.bool), training=True), VECTORS)


def test_modality_dropout():
    """Its share of the pictures, drawn anew in every step, in training alone; an item without one stays without."""
    item = ItemImage(1, has_no_image_vector=True, dropout=0.25)
    vectors, has_picture = tf.ones([20000, 1]), tf.range(20000) >= 4000
    first, second = (item(vectors, has_picture, training=True).numpy()[:, 0] for _ in range(2))
    assert set(np.unique(first)) == {0.0, 1.0}
    assert not first[:4000].any()
    assert first[4000:].mean() == pytest.approx(0.75, abs=0.015)
    assert (first != second).any()
    both = ((first == 0) & (second == 0))[4000:].mean()
    assert both == pytest.approx(0.25**2, abs=0.01)
    np.testing.assert_array_equal(item(vectors, has_picture)[:, 0], has_picture.numpy())


def test_modality_dropout_repeats_from_its_seed_and_its_state():
    def shares(item, steps=2):
        return [item(tf.ones([50, 1]), tf.ones([50], tf.bool), training=True).numpy() for _ in range(steps)]

    def make(seed):
        return ItemImage(1, has_no_image_vector=True, dropout=0.5, seed=seed)

    item = make(3)
    (state,) = [v for v in item.variables if "seed" in v.path]
    saved = state.numpy()
    first = shares(item)
    np.testing.assert_array_equal(shares(make(3)), first)
    assert (np.array(shares(make(4))) != first).any()
    state.assign(saved)
    np.testing.assert_array_equal(shares(item), first)
    assert [v.path for v in make(0).variables] == [v.path for v in item.variables]
