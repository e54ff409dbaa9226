"""Small backbones of every kind, and image towers on them."""

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from layer_helpers import random

from easyrec_mm.network.layers.backbone_stages import stages_of
from easyrec_mm.network.layers.backbones import Backbone
from easyrec_mm.network.layers.fast_layers import with_fast_layers
from easyrec_mm.network.layers.image_tower import ImageTower, TowerOptions

P, SIDE, D = 6, 16, 4
SHAPE = (SIDE, SIDE, 3)
# Pixels as they are, so that references need no normalisation.
AS_THEY_ARE = ((1.0,) * 3, (0.0,) * 3)
PICTURES = np.random.default_rng(0).uniform(-1, 1, (P, *SHAPE)).astype(np.float32)
CATEGORY = np.array([1, 0, 4, 1, 1, 2])
CATEGORIES = {"num_categories": 5, "category_dim": 3}


def as_backbone(model, num_special=0):
    return Backbone(model, AS_THEY_ARE, stages_of(model), num_special, "test")


def conv_backbone(batch_norm=True, dropout=0.0, channels=3):
    """A stem, two blocks at half the resolution and one at a quarter of it."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((None, None, channels))
    for name, filters, strides in (("stem", 4, 2), ("block1a", 4, 1), ("block1b", 4, 1), ("block2a", 6, 2)):
        shortcut = x
        x = keras.layers.Conv2D(filters, 3, strides, "same", use_bias=not batch_norm, name=f"{name}_conv")(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(momentum=0.8, name=f"{name}_bn")(x)
        x = keras.layers.Activation("tanh", name=f"{name}_tanh")(x)
        if dropout and name != "stem":
            x = keras.layers.Dropout(dropout, seed=7, name=f"{name}_drop")(x)
        if name == "block1b":
            x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    model = keras.Model(inputs, x)
    return as_backbone(with_fast_layers(model, "float32"))


def vit_backbone(dropout=0.0):
    """Two blocks on a class token and 16 others."""
    keras.utils.set_random_seed(3)
    model = keras_hub.models.ViTBackbone(
        SHAPE, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, dropout_rate=dropout
    )
    return as_backbone(keras.Model(model.inputs[0], model.output), num_special=1)


def dinov3_backbone():
    """Its blocks also take the embedding of positions, computed of the picture's size."""
    keras.utils.set_random_seed(3)
    model = keras_hub.models.DINOV3Backbone(
        patch_size=4, num_layers=2, hidden_dim=8, num_heads=2, intermediate_dim=16, num_register_tokens=2,
        image_shape=SHAPE,
    )  # fmt: skip
    return as_backbone(keras.Model(model.inputs[0], model.output), num_special=3)


def deit_backbone():
    """Its blocks give their outputs together with a None."""
    keras.utils.set_random_seed(3)
    model = keras_hub.models.DeiTBackbone(SHAPE, 4, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16)
    return as_backbone(keras.Model(model.inputs[0], model.output), num_special=2)


def token_backbone(number, width, num_special):
    """Gives back its input, as tokens."""
    inputs = keras.Input((SIDE, SIDE, 3))
    return as_backbone(keras.Model(inputs, keras.layers.Reshape((number, width))(inputs)), num_special)


def map_backbone():
    inputs = keras.Input((None, None, 3))
    return as_backbone(keras.Model(inputs, keras.layers.Activation("linear", name="same")(inputs)))


def make_tower(backbone, head=None, dtype="float32", **options):
    keras.utils.set_random_seed(5)
    tower = ImageTower(backbone, SHAPE, D, head, dtype, TowerOptions(**options))
    tower(tf.zeros([1, *SHAPE]), tf.zeros([1], tf.int64))
    # Attention starts as the same for all pictures and categories.
    for i, v in enumerate(v for layer in tower.attention if layer for v in layer.trainable_variables):
        v.assign(random(*v.shape, seed=i))
    return tower
