"""Backbones by name and from presets: what they compute, their stages, the names of their variables."""

import functools
import json
import shutil
from itertools import pairwise

import h5py
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from model_helpers import use_tiny_backbone

from easyrec_mm.network.layers.backbone_stages import stages_of, variable_names
from easyrec_mm.network.layers.backbones import (
    BACKBONES,
    IMAGENET,
    MINUS_ONE_TO_ONE,
    BackboneError,
    named_backbone,
    preset_backbone,
)
from easyrec_mm.network.layers.fast_layers import FusedBatchNorm

SIDE = 64
SHAPE = (SIDE, SIDE, 3)
BATCH_NORMS = (keras.layers.BatchNormalization, FusedBatchNorm)


def pictures(number=2, channels=3):
    return np.random.default_rng(0).integers(0, 256, (number, SIDE, SIDE, channels)).astype(np.float32)


@functools.cache
def named(name):
    return named_backbone(name, SHAPE, "mixed_bfloat16")


# Tiny models of keras-hub's families. None of them is like one that has a name.

models = keras_hub.models


def with_vision(backbone, vision, text, **settings):
    """A model of pictures and text."""
    common = {"hidden_dim": 24, "num_layers": 2, "num_heads": 3, "intermediate_dim": 48}
    vision_encoder = vision(patch_size=16, image_shape=SHAPE, **common)
    text_encoder = text(vocabulary_size=9, embedding_dim=24, max_sequence_length=4, **common)
    return backbone(vision_encoder, text_encoder, **settings)


def clip():
    from keras_hub.src.models.clip.clip_text_encoder import CLIPTextEncoder
    from keras_hub.src.models.clip.clip_vision_encoder import CLIPVisionEncoder

    return with_vision(models.CLIPBackbone, CLIPVisionEncoder, CLIPTextEncoder, projection_dim=8)


def siglip():
    from keras_hub.src.models.siglip.siglip_text_encoder import SigLIPTextEncoder
    from keras_hub.src.models.siglip.siglip_vision_encoder import SigLIPVisionEncoder

    return with_vision(models.SigLIPBackbone, SigLIPVisionEncoder, SigLIPTextEncoder)


TOKENS = {"image_shape": SHAPE, "patch_size": 16, "num_layers": 3, "num_heads": 3, "hidden_dim": 24}
FAMILIES = {
    "vit": lambda: models.ViTBackbone(**TOKENS, mlp_dim=48),
    "vit without class token": lambda: models.ViTBackbone(**TOKENS, mlp_dim=48, use_class_token=False),
    "clip": clip,
    "siglip": siglip,
    "dinov2": lambda: models.DINOV2Backbone(
        **TOKENS, intermediate_dim=48, num_register_tokens=2, position_embedding_shape=SHAPE
    ),
    "dinov3": lambda: models.DINOV3Backbone(**TOKENS, intermediate_dim=48, num_register_tokens=2),
    "deit": lambda: models.DeiTBackbone(**TOKENS, intermediate_dim=48),
    "swin": lambda: models.SwinTransformerBackbone(
        image_shape=SHAPE, patch_size=4, embed_dim=12, depths=[2, 1], num_heads=[3, 3], window_size=4
    ),
    "resnet": lambda: models.ResNetBackbone([64], [3], [64, 16], [1, 2], [1, 2], "basic_block"),
    "vgg": lambda: models.VGGBackbone(
        stackwise_num_repeats=[1, 2, 1], stackwise_num_filters=[4, 8, 8], image_shape=SHAPE
    ),
    "densenet": lambda: models.DenseNetBackbone(stackwise_num_repeats=[2, 2], growth_rate=4, image_shape=SHAPE),
    "hgnet": lambda: models.HGNetV2Backbone(
        depths=[1, 2],
        embedding_size=8,
        hidden_sizes=[16, 16],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=False,
        stackwise_stage_filters=[(8, 8, 16, 1, 1, 3), (16, 8, 16, 2, 1, 3)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        image_shape=SHAPE,
    ),
}
TRANSFORMERS = [name for name in FAMILIES if name not in ("resnet", "vgg", "densenet", "hgnet")]


def image_part(model):
    return getattr(model, "vision_encoder", model)


class Presets:
    """Folders of the families' presets, without an image converter, each made once; and what was saved there."""

    def __init__(self, folder):
        self._folder = folder
        self.original = functools.cache(self._original)
        self.loaded = functools.cache(self._loaded)

    def folder(self, family):
        self.original(family)
        return self._folder / family

    def copy(self, family, to):
        """A folder that may be changed."""
        return shutil.copytree(self.folder(family), to / "preset")

    def _original(self, family):
        keras.utils.set_random_seed(1)
        try:
            model = FAMILIES[family]()
        except AttributeError as error:  # the last keras-hub for Python 3.10 has fewer
            pytest.skip(str(error))
        model.save_to_preset(str(self._folder / family))
        return image_part(model)

    def _loaded(self, family, dtype="float32"):
        return preset_backbone(str(self.folder(family)), SHAPE, dtype)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # keras-hub's Swin warns of masks that nobody gave it.
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        yield Presets(tmp_path_factory.mktemp("presets"))


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
# Of each kind of layer; loading takes a second.
IN_BFLOAT16 = ("vit", "dinov3", "swin", "vgg", "densenet", "hgnet")
EVERY_FAMILY = pytest.mark.parametrize("family", [name for name in FAMILIES if "without" not in name])


def own_variables(layer):
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def check_that_stages_hold_each_weight_once(backbone):
    held = [id(variable) for stage in backbone.stages for layer in stage.layers for variable in own_variables(layer)]
    assert len(held) == len(set(held))
    assert set(held) == {id(variable) for variable in backbone.model.weights}


def check_dtypes(backbone):
    """bfloat16 on weights of float32; batch norm of feature maps by the fused kernel."""
    layers = [layer for layer in backbone.model._flatten_layers(include_self=False) if own_variables(layer)]
    assert {layer.compute_dtype for layer in layers} == {"bfloat16"}
    assert {v.dtype for v in backbone.model.weights if "float" in v.dtype} == {"float32"}
    assert {type(layer) for layer in layers if isinstance(layer, BATCH_NORMS)} <= {FusedBatchNorm}


def in_parts(backbone, ends):
    """Models from each of these tensors of the backbone to the next one."""
    return [keras.Model(start, end) for start, end in pairwise([backbone.model.input, *ends])]


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


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("resnet", "stack1_block1_1_relu"),
        ("vit", "vit_patching_and_embedding"),
        ("siglip", "post_layer_norm"),
    ],
)
def test_feature_layer_of_a_preset(presets, family, layer):
    """The model cut there, with its stages so far."""
    whole = presets.loaded(family)
    layer = next(other.name for other in whole.model.layers if other.name.endswith(layer))
    cut = preset_backbone(str(presets.folder(family)), SHAPE, "float32", layer)
    x = pictures() / 128 - 1
    expected = keras.Model(whole.model.input, whole.model.get_layer(layer).output)(x)
    np.testing.assert_allclose(cut.model(x), expected, rtol=1e-6, atol=1e-6)
    check_that_stages_hold_each_weight_once(cut)
    assert len(cut.model.weights) < len(whole.model.weights)
    has_class_token = family == "vit"
    assert cut.num_special == has_class_token


def test_a_feature_layer_that_does_not_exist(presets):
    says = "no layer named 'stack1_block0_output'; nearest names: "
    with pytest.raises(BackboneError, match=says) as caught:
        preset_backbone(str(presets.folder("resnet")), SHAPE, "float32", "stack1_block0_output")
    assert caught.value.setting == "feature_layer"
    assert "stack1_block0_out," in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_feature_layer_whose_output_is_no_map(presets):
    folder = str(presets.folder("hgnet"))
    encoder = next(layer.name for layer in presets.loaded("hgnet").model.layers if layer.name.endswith("encoder"))
    says = f"the output of '{encoder}' is neither a feature map nor tokens"
    with pytest.raises(BackboneError, match=says) as caught:
        preset_backbone(folder, SHAPE, "float32", encoder)
    assert caught.value.setting == "feature_layer"


@pytest.mark.parametrize(("normalisation", "mean", "deviation"), [
    (IMAGENET, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]), (MINUS_ONE_TO_ONE, [127.5] * 3, [127.5] * 3),
])  # fmt: skip
def test_normalisations(normalisation, mean, deviation):
    scale, shift = normalisation
    x = pictures()
    np.testing.assert_allclose(x * scale + shift, (x - mean) / deviation, rtol=1e-5, atol=1e-5)


# Presets


def to_preset_scale(x):
    """An independent normalisation of pixels, unlike those by name."""
    return (x / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]


CONVERTER = {"scale": [1 / 51, 1 / 63.75, 1 / 127.5], "offset": [-2.5, -1.6, -0.6], "image_size": (SIDE, SIDE)}


def outputs(model, x):
    y = model(tf.cast(x, tf.float32))
    if isinstance(y, dict):
        # HGNetV2 gives a map of each stage.
        y = y[list(y)[-1]]
    return y.numpy()


@EVERY_FAMILY
def test_a_preset_computes_what_was_saved(presets, family):
    """On pixels of ImageNet's normalisation, where it has none of its own."""
    backbone = presets.loaded(family)
    assert backbone.normalisation == IMAGENET
    x = pictures() * np.float32(IMAGENET[0]) + np.float32(IMAGENET[1])
    expected = outputs(presets.original(family), x)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(backbone.model(x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("family", IN_BFLOAT16)
def test_a_preset_in_bfloat16(presets, family):
    backbone = presets.loaded(family, "mixed_bfloat16")
    check_dtypes(backbone)
    x = pictures() / 128 - 1
    output = backbone.model(tf.cast(x, tf.bfloat16))
    assert output.dtype == tf.bfloat16
    wide = presets.loaded(family).model(x).numpy()
    assert np.corrcoef(tf.cast(output, tf.float32).numpy().ravel(), wide.ravel())[0, 1] > 0.99


def test_a_preset_that_was_saved_in_bfloat16(tmp_path):
    """It is trained on weights of float32 all the same."""
    model = models.VGGBackbone(
        stackwise_num_repeats=[1], stackwise_num_filters=[4], image_shape=SHAPE, dtype="bfloat16"
    )
    model.save_to_preset(str(tmp_path))
    for dtype, compute in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        loaded = preset_backbone(str(tmp_path), SHAPE, dtype).model
        assert {v.dtype for v in loaded.weights} == {"float32"}
        assert loaded.output.dtype == compute
        for v, saved in zip(loaded.weights, model.weights, strict=True):
            np.testing.assert_array_equal(v.numpy(), saved.numpy().astype(np.float32))


def test_what_is_built_later_has_the_precision_of_before(presets):
    presets.loaded("vgg", "mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"


@EVERY_FAMILY
def test_stages_of_a_preset_hold_each_weight_once(presets, family):
    check_that_stages_hold_each_weight_once(presets.loaded(family))


@EVERY_FAMILY
def test_stages_are_in_the_order_of_the_data(presets, family):
    """Layers with weights are called stage after stage, the first of them in the stem."""
    backbone = presets.loaded(family)
    called = []

    def watched(call, number):
        def run(*args, **kwargs):
            called.append(number)
            return call(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for number, stage in enumerate(backbone.stages):
            for layer in stage.layers:
                if own_variables(layer):
                    patch.setattr(layer, "call", watched(layer.call, number))
        backbone.model(pictures(1))
    order = list(dict.fromkeys(called))
    assert order == list(range(len(backbone.stages)))
    if family != "swin":
        # A layer that holds the blocks and a weight of its own would be called before them and be in the stem.
        assert called == sorted(called)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in TRANSFORMERS])
def test_blocks_of_a_preset_one_after_the_other_are_the_whole(presets, family):
    backbone = presets.loaded(family)
    assert not backbone.is_transformer
    x = whole = tf.constant(pictures() / 128 - 1)
    for part in in_parts(backbone, [end for stage in backbone.stages for end in stage.block_ends]):
        x = part(x)
    np.testing.assert_allclose(x, backbone.model(whole), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "blocks"),
    [
        ("vit", 3),
        ("clip", 2),
        ("siglip", 3),  # the last is its pooling by attention
        ("dinov3", 3),
        ("swin", 3),
        ("resnet", [1, 1, 2]),
        ("vgg", [1, 1, 1]),
        ("densenet", [1, 2, 2]),
        ("hgnet", [1, 1]),
    ],
)
def test_blocks_of_presets(presets, family, blocks):
    stages = presets.loaded(family).stages
    if isinstance(blocks, int):
        assert [stage.name for stage in stages] == ["stem", *(f"block {i + 1}" for i in range(blocks))]
        assert presets.loaded(family).is_transformer
    else:
        assert [len(stage.block_ends) for stage in stages] == blocks


@pytest.mark.parametrize("family", IN_BFLOAT16)
def test_names_of_a_presets_variables(presets, family):
    """Each its own, and the same in every process, also in another precision."""
    names = list(variable_names(presets.loaded(family).model).values())
    assert len(set(names)) == len(names) == len(presets.loaded(family).model.variables)
    assert names == list(variable_names(presets.loaded(family, "mixed_bfloat16").model).values())


def test_source_says_what_the_architecture_is(presets):
    """The same whenever it is loaded, in any precision; another for another."""
    families = ("vit", "dinov3", "vgg")
    sources = [presets.loaded(family).source for family in families]
    assert len(set(sources)) == len(sources)
    assert sources == [presets.loaded(family, "mixed_bfloat16").source for family in families]


def converter_of(family):
    return {
        "vit": models.ViTImageClassifierPreprocessor.image_converter_cls,
        "clip": keras_hub.layers.CLIPImageConverter,
    }[family]


@pytest.mark.parametrize("family", ["vit", "clip"])
def test_normalisation_is_the_presets(presets, tmp_path, family):
    folder = presets.copy(family, tmp_path)
    converter_of(family)(**CONVERTER).save_to_preset(str(folder))
    backbone = preset_backbone(str(folder), SHAPE, "float32")
    x = pictures()
    scale, shift = backbone.normalisation
    np.testing.assert_allclose(x * scale + shift, to_preset_scale(x), rtol=1e-5, atol=1e-5)
    expected = outputs(presets.original(family), to_preset_scale(x))
    np.testing.assert_allclose(
        backbone.model(x * np.float32(scale) + np.float32(shift)), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scale": 1 / 127.5, "offset": -1}, lambda x: x / 127.5 - 1),
        ({"scale": 1 / 255}, lambda x: x / 255),
        ({}, lambda x: x),
        ({"offset": [-1.0, -2.0, -3.0]}, lambda x: x - [1, 2, 3]),
        # As keras-hub's presets were saved first.
        (
            {"scale": 1 / 255, "mean": [0.5, 0.4, 0.3], "variance": [0.04, 0.0625, 0.25], "height": 64, "width": 64},
            to_preset_scale,
        ),
    ],
)
def test_kinds_of_image_converters(presets, tmp_path, settings, expected):
    folder = presets.copy("vgg", tmp_path)
    converter = {"module": "keras_hub.layers", "class_name": "VGGImageConverter", "config": settings}
    converter["registered_name"] = "keras_hub>VGGImageConverter"
    (folder / "image_converter.json").write_text(json.dumps(converter), encoding="utf-8")
    scale, shift = preset_backbone(str(folder), SHAPE, "float32").normalisation
    x = pictures()
    assert len(scale) == len(shift) == 3
    np.testing.assert_allclose(x * scale + shift, expected(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["{", '{"class_name": "None", "config": {}, "registered_name": "x>None"}'])
def test_an_image_converter_that_cannot_be_read(presets, tmp_path, text):
    """It would be a wrong normalisation to go on without it."""
    folder = presets.copy("vgg", tmp_path)
    (folder / "image_converter.json").write_text(text, encoding="utf-8")
    check_error(folder, f"'{folder}': image_converter.json cannot be read: ")


# At the embedding, special tokens are those that do not depend on the picture.
SPECIAL = {
    "vit": (1, "vit_patching_and_embedding"),
    "vit without class token": (0, "vit_patching_and_embedding"),
    "clip": (1, "embedding"),
    "dinov2": (3, "embeddings"),
    "dinov3": (3, "embeddings"),
    "deit": (2, "deit_patching_and_embedding"),
}


@pytest.mark.parametrize("family", SPECIAL)
def test_special_tokens_come_first(presets, family):
    number, embedding = SPECIAL[family]
    backbone = presets.loaded(family)
    assert backbone.num_special == number
    assert backbone.model(pictures(1)).shape[1] == number + (SIDE // 16) ** 2
    layer = next(layer.name for layer in backbone.model.layers if layer.name.endswith(embedding))
    embedded = keras.Model(backbone.model.input, backbone.model.get_layer(layer).output)
    first, second = embedded(pictures(2)).numpy()
    np.testing.assert_array_equal(first[:number], second[:number])
    assert (first[number:] != second[number:]).any(axis=-1).all()


@pytest.mark.parametrize("family", ["swin", "siglip", "resnet"])
def test_no_special_tokens(presets, family):
    assert presets.loaded(family).num_special == 0


# Presets that cannot be loaded


def check_error(preset, *says, shape=SHAPE):
    with pytest.raises(BackboneError) as caught:
        preset_backbone(str(preset), shape, "float32")
    assert caught.value.setting == "preset"
    for text in says:
        assert text in str(caught.value)


def test_weights_that_are_not_those_of_the_config(presets, tmp_path):
    """Both sides are listed, and not all of many."""
    folder = presets.copy("vit", tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["config"]["mlp_dim"] = 32
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    check_error(
        folder,
        f"'{folder}' cannot be loaded: its weights do not fit its config:\n",
        ": config.json [24, 32], model.weights.h5 [24, 48]\n",
        ": config.json [32, 24], model.weights.h5 [48, 24]\n",
        "\n  and 1 more",
    )


def test_weights_of_fewer_layers(presets, tmp_path):
    folder = presets.copy("vgg", tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["config"]["stackwise_num_repeats"] = [1, 2, 2]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    check_error(
        folder,
        "its weights do not fit its config:\n  layers/conv2d_4/vars/0: config.json [3, 3, 8, 8], "
        "model.weights.h5 has none\n",
    )


def test_weights_that_are_missing(presets, tmp_path):
    folder = presets.copy("vgg", tmp_path)
    (folder / "model.weights.h5").unlink()
    check_error(
        folder,
        f"'{folder}' cannot be loaded: model.weights.h5 is missing (the folder contains config.json, metadata.json)",
    )


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_weights_that_are_no_weights(presets, tmp_path, content):
    folder = presets.copy("vgg", tmp_path)
    (folder / "model.weights.h5").write_bytes(content)
    check_error(folder, f"'{folder}' cannot be loaded: ")


def test_weights_of_which_some_are_missing(presets, tmp_path):
    folder = presets.copy("vgg", tmp_path)
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        del file["layers/conv2d/vars/0"]
    check_error(folder, "layers/conv2d/vars/0: config.json [3, 3, 3, 4], model.weights.h5 has none")


def test_an_empty_folder(tmp_path):
    check_error(tmp_path, f"'{tmp_path}' cannot be loaded: model.weights.h5 is missing (the folder contains nothing)")


def test_a_preset_of_text(tmp_path):
    models.BertBackbone(9, 1, 1, 4, 4, max_sequence_length=8).save_to_preset(str(tmp_path))
    check_error(tmp_path, f"'{tmp_path}' is not an image backbone: it takes ", "token_ids [None]", "segment_ids [None]")


def test_pictures_of_another_shape_than_the_presets(presets):
    """In the order of img_shape: width, height, channels."""
    says = (
        "takes pictures of 64 x 64 x 3 (width x height x channels), but would get 32 x 64 x 3; change img_shape or "
        "upscale"
    )
    check_error(presets.folder("vit"), says, shape=(64, 32, 3))
    says = "takes pictures of any x any x 3 (width x height x channels), but would get 32 x 64 x 1"
    check_error(presets.folder("resnet"), says, shape=(64, 32, 1))


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
