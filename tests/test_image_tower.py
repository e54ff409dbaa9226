"""The image tower: pooling, and attention behind stages or blocks."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_tower_helpers import (
    CATEGORIES,
    CATEGORY,
    PICTURES,
    SHAPE,
    SIDE,
    P,
    as_backbone,
    conv_backbone,
    make_tower,
    map_backbone,
    token_backbone,
    vit_backbone,
)
from layer_helpers import random

from easyrec_mm.network.layers.backbones import BackboneError
from easyrec_mm.network.layers.descriptors import Descriptors
from easyrec_mm.network.layers.dnn import DNN, Highway
from easyrec_mm.network.layers.image_tower import POSITIONS, ImageTower, TowerOptions
from easyrec_mm.network.layers.sequences import unpacked

# Pooling


def gem(x, axes, power=3.0):
    return np.mean(np.maximum(x.astype(np.float64), 1e-6) ** power, axis=axes) ** (1 / power)


@pytest.mark.parametrize("pooling", ["AVG", "MAX", "GEM"])
def test_pooling_of_maps(pooling):
    tower = make_tower(map_backbone(), pooling=pooling)
    expected = {"AVG": np.mean, "MAX": np.max, "GEM": lambda x, axis: gem(x, axis)}[pooling](PICTURES, axis=(1, 2))
    np.testing.assert_allclose(tower.features(PICTURES), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["AVG", "MAX", "GEM", "CLS_TOKEN"])
@pytest.mark.parametrize("num_special", [0, 1, 3])
def test_pooling_of_tokens(pooling, num_special):
    """Class and register tokens take no part in the pooling of places."""
    if pooling == "CLS_TOKEN" and not num_special:
        return
    tower = make_tower(token_backbone(64, 12, num_special), pooling=pooling)
    tokens = PICTURES.reshape(P, 64, 12)
    places = tokens[:, num_special:]
    expected = {
        "AVG": lambda: places.mean(axis=1),
        "MAX": lambda: places.max(axis=1),
        "GEM": lambda: gem(places, 1),
        "CLS_TOKEN": lambda: tokens[:, 0],
    }[pooling]()
    np.testing.assert_allclose(tower.features(PICTURES), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_special", [0, 3])
def test_positions_of_tokens(num_special):
    """Class and register tokens are none of the places."""
    tower = make_tower(token_backbone(64, 12, num_special), pooling=POSITIONS)
    places, is_used = unpacked(tower.features(PICTURES), tower.length)
    np.testing.assert_allclose(places, PICTURES.reshape(P, 64, 12)[:, num_special:], rtol=1e-5, atol=1e-6)
    assert is_used.numpy().all()


@pytest.mark.parametrize("make_head", [lambda: None, lambda: DNN([7, 5], use_bn=False), lambda: Highway(6)])
@pytest.mark.parametrize("descriptors", [None, Descriptors(4, 3, 5)])
def test_widths_are_known_before_the_first_call(make_head, descriptors):
    tower = ImageTower(map_backbone(), SHAPE, 0, make_head(), "float32", TowerOptions(descriptors=descriptors))
    widths = tower.num_features, tower.width
    features = tower.features(PICTURES)
    assert (features.shape[1], tower.vectors(features).shape[1]) == widths


def test_a_vector_of_the_backbones_own_is_not_pooled():
    inputs = keras.Input(SHAPE)
    backbone = as_backbone(keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(inputs)))
    np.testing.assert_array_equal(make_tower(backbone).features(PICTURES), PICTURES.max(axis=(1, 2)))
    for pooling in ("MAX", "GEM"):
        with pytest.raises(BackboneError, match=f"{pooling} has no effect") as caught:
            make_tower(backbone, pooling=pooling)
        assert caught.value.setting == "pooling"


@pytest.mark.parametrize("backbone", [map_backbone, functools.partial(token_backbone, 64, 12, 0)])
def test_no_class_token(backbone):
    with pytest.raises(BackboneError, match="no class token; choose AVG, MAX or GEM") as caught:
        make_tower(backbone(), pooling="CLS_TOKEN")
    assert caught.value.setting == "pooling"


def test_gradient_of_gem():
    """y = (mean x^p)^(1/p): of the places, none for those that are not positive, and of p."""
    tower = make_tower(map_backbone(), pooling="GEM")
    power = next(v for v in tower.trainable_variables if v.name == "gem_power")
    assert float(power) == 3.0
    power.assign(2.5)
    upstream = random(P, 3, seed=2)
    pixels = tf.constant(PICTURES)
    with tf.GradientTape() as tape:
        tape.watch([pixels, power.value])
        loss = tf.reduce_sum(tower.features(pixels) * upstream)
    actual, of_power = tape.gradient(loss, [pixels, power.value])
    x, p = np.maximum(PICTURES.astype(np.float64), 1e-6), 2.5
    mean = np.mean(x**p, axis=(1, 2))
    y = mean ** (1 / p)
    expected = (upstream * y ** (1 - p))[:, None, None] * x ** (p - 1) / SIDE**2 * (PICTURES > 1e-6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    of_y = y * (np.mean(x**p * np.log(x), axis=(1, 2)) / (p * mean) - np.log(mean) / p**2)
    assert float(of_power) == pytest.approx(float(np.sum(upstream * of_y)), rel=1e-4)


def test_gem_in_bfloat16_reads_its_power_in_float32():
    """A step of training would be lost in bfloat16, whose numbers next to 3 are 1/64 apart."""
    inputs = keras.Input((None, None, 3), dtype="bfloat16")
    same = keras.layers.Activation("linear", dtype="mixed_bfloat16")(inputs)
    tower = make_tower(as_backbone(keras.Model(inputs, same)), dtype="mixed_bfloat16", pooling="GEM")
    power = next(v for v in tower.trainable_variables if v.name == "gem_power")
    assert power.dtype == "float32"
    pixels = tf.fill([1, SIDE, SIDE, 3], 0.5) * tf.constant([[[[1.0]], [[0.5]]]] * 1)[:, :1]
    pixels = tf.concat([pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] / 16], axis=1)

    def derivative():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(tower.features(pixels), tf.float32))
        return float(tape.gradient(loss, power.value))

    before = derivative()
    power.assign(3.001)
    assert derivative() != before


# Attention


def rows(tables, name):
    return tf.gather(tables[name].value, CATEGORY)


@pytest.mark.parametrize(("places", "ends"), [
    ("EACH_STAGE", ["block1b_add", "block2a_tanh"]), ("EACH_BLOCK", ["block1a_tanh", "block1b_add", "block2a_tanh"]),
])  # fmt: skip
@pytest.mark.parametrize("rematerialize", [False, True])
def test_attention_behind_stages_or_blocks(places, ends, rematerialize):
    """The same as the parts of the backbone and the layers of attention in turn; not behind the stem."""
    backbone = conv_backbone()
    tower = make_tower(backbone, **CATEGORIES, attention_places=places, rematerialize=rematerialize)
    attention = [layer for layer in tower.attention if layer is not None]
    assert len(attention) == len(ends)
    assert len({layer.name for layer in attention}) == len(ends)
    start, x, tables = backbone.model.input, tf.constant(PICTURES), tower.category_tables()
    for end, layer in zip(ends, attention, strict=True):
        end = backbone.model.get_layer(end).output
        x = layer(keras.Model(start, end)(x), rows(tables, "channel"), rows(tables, "spatial"))
        start = end
    assert start is backbone.model.output
    features = tower.features(PICTURES, CATEGORY)
    np.testing.assert_allclose(features, tf.reduce_mean(x, axis=[1, 2]), rtol=1e-5, atol=1e-6)
    plain = make_tower(conv_backbone()).features(PICTURES)
    assert not np.allclose(features, plain, rtol=1e-2)


def test_vectors_are_of_a_picture_and_a_category():
    tower = make_tower(conv_backbone(), **CATEGORIES)
    same = np.repeat(PICTURES[:1], 5, axis=0)
    vectors = tower(same, np.arange(5)).numpy()
    for i in range(5):
        for j in range(i):
            assert not np.allclose(vectors[i], vectors[j], rtol=1e-6)
    order = np.random.default_rng(1).permutation(P)
    permuted = tower(PICTURES[order], CATEGORY[order])
    np.testing.assert_allclose(permuted, tower(PICTURES, CATEGORY).numpy()[order], rtol=1e-5, atol=1e-6)


def test_attention_needs_maps():
    with pytest.raises(BackboneError, match="no feature maps for its attention") as caught:
        make_tower(vit_backbone(), **CATEGORIES)
    assert caught.value.setting == "category_feature"
