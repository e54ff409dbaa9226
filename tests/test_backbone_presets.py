"""Backbones from presets: they compute what was saved, stage by stage; presets that cannot be loaded."""

import json

import h5py
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from backbone_helpers import (
    EVERY_FAMILY,
    FAMILIES,
    IN_BFLOAT16,
    SHAPE,
    SIDE,
    TRANSFORMERS,
    Presets,
    check_dtypes,
    check_error,
    check_that_stages_hold_each_weight_once,
    in_parts,
    models,
    outputs,
    own_variables,
    pictures,
)

from easyrec_mm.network.layers.backbone_stages import variable_names
from easyrec_mm.network.layers.backbones import IMAGENET, BackboneError, preset_backbone


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # keras-hub's Swin warns of masks that nobody gave it.
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        yield Presets(tmp_path_factory.mktemp("presets"))


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


# Presets


def to_preset_scale(x):
    """An independent normalisation of pixels, unlike those by name."""
    return (x / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]


CONVERTER = {"scale": [1 / 51, 1 / 63.75, 1 / 127.5], "offset": [-2.5, -1.6, -0.6], "image_size": (SIDE, SIDE)}


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
