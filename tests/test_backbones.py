"""Backbones by name, and networks like none of them: what they compute, their stages, the names of variables."""

import functools
from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf
from backbone_helpers import (
    SHAPE,
    check_dtypes,
    check_error,
    check_that_stages_hold_each_weight_once,
    in_parts,
    own_variables,
    pictures,
)
from model_helpers import use_tiny_backbone

from easyrec_mm.network.layers.backbone_stages import stages_of, variable_names
from easyrec_mm.network.layers.backbones import BACKBONES, IMAGENET, MINUS_ONE_TO_ONE, BackboneError, named_backbone
from easyrec_mm.network.layers.fast_layers import FusedBatchNorm


@functools.cache
def named(name):
    return named_backbone(name, SHAPE, "mixed_bfloat16")


# Blocks of each stage behind the stem, as the papers have them; and the width of the output.
STRUCTURES = {
    "ResNet-18": ([2, 2, 2, 2], 512),
    "ResNet-34": ([3, 4, 6, 3], 512),
    "ResNet-50": ([3, 4, 6, 3], 2048),
    "ResNet-101": ([3, 4, 23, 3], 2048),
    "MobileNetV3-Small": ([1, 2, 3 + 2, 3], 576),
    "MobileNetV3-Large": ([1, 2, 3, 4 + 2, 3], 960),
    "EfficientNetV2-B0": ([1, 2, 2, 3 + 5, 8], 1280),
    "ConvNeXt-Tiny": ([3, 3, 9, 3], 768),
    "ViT-Tiny": (12, 192),
    "ViT-Small": (12, 384),
    "ViT-Base": (12, 768),
}
WITHOUT_BATCH_NORM = ("ConvNeXt-Tiny", "ViT-Tiny", "ViT-Small", "ViT-Base")
# Of the same builders as others.
SLOW = ("ResNet-34", "ResNet-50", "ResNet-101", "MobileNetV3-Large", "ViT-Small", "ViT-Base")
EVERY_NAME = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in BACKBONES if name != "None"]
)


# By name


def test_none_is_the_mean_colour():
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *SHAPE)).astype(np.float32)
    none = named("None")
    assert not none.model.weights
    np.testing.assert_allclose(none.model(pixels), pixels.mean(axis=(1, 2)), rtol=1e-2)  # bfloat16


@EVERY_NAME
def test_blocks_and_width(name):
    backbone = named(name)
    blocks, width = STRUCTURES[name]
    assert backbone.source == name
    assert backbone.model.output.shape[-1] == width
    assert backbone.is_transformer == isinstance(blocks, int)
    if backbone.is_transformer:
        assert [stage.name for stage in backbone.stages] == ["stem", *(f"block {i + 1}" for i in range(blocks))]
        assert not any(stage.block_ends for stage in backbone.stages)
        assert backbone.num_special == 1
    else:
        assert [stage.name for stage in backbone.stages] == ["stem", *(f"stage {i + 1}" for i in range(len(blocks)))]
        assert [len(stage.block_ends) for stage in backbone.stages] == [1, *blocks]
        assert backbone.stages[-1].block_ends[-1] is backbone.model.output
        assert backbone.num_special == 0


@EVERY_NAME
def test_stages_hold_each_weight_once(name):
    check_that_stages_hold_each_weight_once(named(name))


@EVERY_NAME
def test_bfloat16_with_weights_of_float32(name):
    backbone = named(name)
    check_dtypes(backbone)
    assert backbone.model.output.dtype == "bfloat16"
    has_batch_norm = any(isinstance(layer, FusedBatchNorm) for layer in backbone.model.layers)
    assert has_batch_norm == (name not in WITHOUT_BATCH_NORM)


@EVERY_NAME
def test_averages_of_batch_norm_hold_after_some_hundred_steps(name):
    """These start from random weights; evaluation by averages that hold the initial 0 and 1 would be of no use."""
    norms = [layer for layer in named(name).model.layers if isinstance(layer, FusedBatchNorm)]
    assert all(layer.momentum**500 < 0.01 for layer in norms)


@EVERY_NAME
def test_blocks_one_after_the_other_are_the_whole(name):
    """Of the same layers; nothing passes a block's end but its output, or Keras would not take it for a model's."""
    backbone = named(name)
    if backbone.is_transformer:
        return
    parts = in_parts(backbone, [end for stage in backbone.stages for end in stage.block_ends])
    layers = [id(layer) for part in parts for layer in part.layers if own_variables(layer)]
    assert layers == [id(layer) for layer in backbone.model.layers if own_variables(layer)]


@EVERY_NAME
def test_each_stage_halves_the_picture_but_for_the_first_one(name):
    """So attention behind each of them sees another resolution, and the last is of one thirty-second."""
    ends = [stage.block_ends[-1] for stage in named(name).stages if stage.block_ends]
    if not ends:
        return
    probe = keras.Model(named(name).model.input, ends)
    sides = [spec.shape[1] for spec in probe.compute_output_spec(keras.KerasTensor((1, 256, 256, 3)))]
    assert sides[-1] == 8
    assert all(after * 2 == before for before, after in pairwise(sides[1:]))
    assert sides[0] in (sides[1], 2 * sides[1])


@pytest.mark.parametrize("name", ["EfficientNetV2-B0", "ConvNeXt-Tiny"])
def test_names_of_variables_do_not_depend_on_what_the_process_has_built(name):
    """Those of weights and of the states of dropout, each its own."""
    first = list(variable_names(named(name).model).values())
    assert len(set(first)) == len(first) == len(named(name).model.variables)
    assert list(variable_names(BACKBONES[name].build(SHAPE)).values()) == first
    assert sum("seed" in name for name in first) == {"EfficientNetV2-B0": 15}.get(name, 0)


def test_names_are_those_that_layers_were_given():
    names = set(variable_names(named("ResNet-18").model).values())
    assert {"conv1_conv/kernel", "stack0_block0_1_conv/kernel", "stack3_block1_2_bn/moving_variance"} <= names
    names = set(variable_names(named("ConvNeXt-Tiny").model).values())
    # Keras gives the last one no name.
    assert {"convnext_tiny_stem/convnext_tiny_stem_conv/kernel", "layer_normalization/gamma"} <= names
    names = set(variable_names(named("ViT-Tiny").model).values())
    assert {"vit_encoder/ln/beta", "vit_encoder/transformer_block_12/mha/query/kernel"} <= names


def test_names_of_layers_without_a_name_are_numbered_where_they_stand():
    class Pair(keras.layers.Layer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.parts = [keras.layers.Dense(2), keras.layers.Conv2D(2, 1), keras.layers.Dense(2)]
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x * self.scale

    def names():
        inputs = keras.Input((4, 4, 2))
        x = Pair()(Pair(name="mine_7")(inputs))
        x = with_fused = keras.layers.BatchNormalization()(x)
        model = keras.Model(inputs, keras.layers.Conv2DTranspose(1, 1)(x))
        with_fused._keras_history.operation.__class__ = FusedBatchNorm
        return [name for name in variable_names(model).values() if not name.endswith("bias")]

    expected = [
        *(f"{pair}/{part}" for pair in ("mine_7", "pair") for part in (
            "variable", "dense/kernel", "conv2d/kernel", "dense_1/kernel"
        )),
        *(f"batch_normalization/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
        "conv2d_transpose/kernel",
    ]  # fmt: skip
    assert names() == names() == expected


def test_feature_layer(monkeypatch):
    use_tiny_backbone(monkeypatch)
    cut = named_backbone("ResNet-18", SHAPE, "float32", "conv")
    kernel = cut.model.weights[0]
    assert [(v.name, v.shape[-1]) for v in cut.model.weights] == [("kernel", 5)]
    x = pictures()
    expected = tf.nn.conv2d(x, kernel.value, 2, "VALID")
    np.testing.assert_allclose(cut.model(x), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("name", "least", "side", "num_blocks"), [
    ("ResNet-18", 2, 2, [2, 2, 2, 2]), ("ResNet-18", 3, 4, [2, 2, 2]), ("ResNet-18", 4, 4, [2, 2, 2]),
    ("MobileNetV3-Small", 5, 8, [1, 2]), ("ConvNeXt-Tiny", 16, 16, [3]),
])  # fmt: skip
def test_stages_of_small_feature_maps_are_left_out(name, least, side, num_blocks):
    cut = named_backbone(name, (64, 96, 3), "float32", min_map_size=least)
    assert [len(stage.block_ends) for stage in cut.stages[1:]] == num_blocks
    assert cut.model(np.zeros((1, 64, 96, 3), np.float32)).shape[1:3] == (side, side * 3 // 2)


def test_no_feature_map_is_large_enough():
    with pytest.raises(BackboneError, match="33, but the largest feature maps have 16 positions a side") as caught:
        named_backbone("ResNet-18", (64, 64, 3), "float32", min_map_size=33)
    assert caught.value.setting == "min_map_size"


def test_tokens_are_not_left_out():
    assert named_backbone("ViT-Tiny", SHAPE, "float32", min_map_size=8).source == "ViT-Tiny"


@pytest.mark.parametrize(("normalisation", "mean", "deviation"), [
    (IMAGENET, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]), (MINUS_ONE_TO_ONE, [127.5] * 3, [127.5] * 3),
])  # fmt: skip
def test_normalisations(normalisation, mean, deviation):
    scale, shift = normalisation
    x = pictures()
    np.testing.assert_allclose(x * scale + shift, (x - mean) / deviation, rtol=1e-5, atol=1e-5)


def test_a_name_that_keras_hub_does_not_know():
    check_error(
        "resnet_18_imagnet",
        "'resnet_18_imagnet' is neither a folder nor a preset of keras-hub; nearest names: resnet_18_imagenet, ",
    )
    check_error("8", "'8' is neither a folder nor a preset of keras-hub; keras-hub has ", " presets, such as ")


def test_a_name_without_a_network(monkeypatch, tmp_path):
    """It fails, and does not wait for ever."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    check_error(
        "resnet_18_imagenet",
        "'resnet_18_imagenet' cannot be fetched: ",
        "; without network access, give a folder written by save_to_preset",
    )


# Stages of networks that are like none of these


def test_stages_by_halving_where_layers_have_no_names_of_blocks():
    inputs = x = keras.Input((None, None, 3))
    for i, strides in enumerate((2, 1, 2, 1, 2)):
        x = keras.layers.Conv2D(4, 3, strides, "same", name=f"conv{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    stages = stages_of(keras.Model(inputs, x))
    assert [[end._keras_history.operation.name for end in stage.block_ends] for stage in stages] == [
        ["relu1"],
        ["relu3"],
        ["relu4"],
    ]


def test_a_connection_past_a_block_holds_it_together_with_the_next():
    """A cut between them would lose it."""
    inputs = x = keras.Input((16, 16, 3))
    outputs = {}
    for name in ("block1", "block2", "block3"):
        x = keras.layers.Conv2D(3, 3, padding="same", name=f"{name}_conv")(x)
        x = outputs[name] = keras.layers.ReLU(name=f"{name}_relu")(x)
        if name == "block2":
            x = keras.layers.Add(name="block2_add")([x, outputs["block1"]])
            x = keras.layers.Add(name="block2_late")([x, inputs])
    model = keras.Model(inputs, x)
    stages = stages_of(model)
    ends = [end._keras_history.operation.name for stage in stages for end in stage.block_ends]
    assert ends == ["block2_late", "block3_relu"]
