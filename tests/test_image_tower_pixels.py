"""The image tower against NumPy float64: pixels are normalised, averaged, projected, and go through the head."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import randomise

from easyrec_mm.network.layers.backbones import BACKBONES, named_backbone
from easyrec_mm.network.layers.dnn import Highway
from easyrec_mm.network.layers.image_tower import ImageTower


def identity_backbone(monkeypatch, channels=3):
    """A backbone that gives back its input; batch norm as it starts, without epsilon."""
    inputs = keras.Input((None, None, channels))
    model = keras.Model(inputs, keras.layers.BatchNormalization(epsilon=0.0, name="bn")(inputs))
    for name, backbone in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, name, backbone._replace(build=lambda shape: model))


def make_tower(backbone, projection, head, dtype, channels=3, options=None):
    shape = (6, 4, channels)
    return ImageTower(named_backbone(backbone, shape, dtype), shape, projection, head, dtype, options)


@pytest.mark.parametrize(("backbone", "mean", "deviation"), [
    ("ResNet-18", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]), ("MobileNetV3-Large", [127.5] * 3, [127.5] * 3),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_image_tower(monkeypatch, backbone, mean, deviation, dtype):
    """Pixels are normalised, averaged over the picture and projected, and go through the head."""
    identity_backbone(monkeypatch)
    tower = make_tower(backbone, 4, Highway(5, "highway"), "float32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3)).astype(dtype)
    tower(pixels)
    w = randomise(tower.projection) | randomise(tower.head)
    x = ((pixels.astype(np.float64) - mean) / deviation).mean(axis=(1, 2))
    x = x @ w["image/projection/kernel"] + w["image/projection/bias"]
    expected = tower.head(tf.constant(x, tf.float32))
    np.testing.assert_allclose(tower(pixels), expected, rtol=1e-5, atol=1e-5)


def test_image_tower_of_grey_pictures(monkeypatch):
    identity_backbone(monkeypatch, channels=1)
    tower = make_tower("ResNet-18", 1, None, "float32", channels=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 1)).astype(np.uint8)
    tower(pixels)
    tower.projection.set_weights([np.ones((1, 1)), np.zeros(1)])
    expected = ((pixels - 123.675) / 58.395).mean(axis=(1, 2))
    np.testing.assert_allclose(tower(pixels), expected, rtol=1e-5, atol=1e-5)


def test_image_tower_in_bfloat16_gives_float32(monkeypatch):
    """The vector is what the store keeps; the projection has float32 weights."""
    identity_backbone(monkeypatch)
    tower = make_tower("ResNet-18", 4, None, "mixed_bfloat16")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3)).astype(np.uint8)
    vector = tower(pixels)
    assert vector.dtype == tf.float32
    assert {v.dtype for v in tower.variables} == {"float32"}
    wide = make_tower("ResNet-18", 4, None, "float32")
    wide(pixels)
    wide.set_weights(tower.get_weights())
    np.testing.assert_allclose(vector, wide(pixels), rtol=0.05, atol=0.05)
