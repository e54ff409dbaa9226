"""Tiny models of keras-hub's families, their presets, and checks that hold for every backbone."""

import functools
import shutil
from itertools import pairwise

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from easyrec_mm.network.layers.backbones import BackboneError, preset_backbone
from easyrec_mm.network.layers.fast_layers import FusedBatchNorm

SIDE = 64
SHAPE = (SIDE, SIDE, 3)
BATCH_NORMS = (keras.layers.BatchNormalization, FusedBatchNorm)


def pictures(number=2, channels=3):
    return np.random.default_rng(0).integers(0, 256, (number, SIDE, SIDE, channels)).astype(np.float32)


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


def outputs(model, x):
    y = model(tf.cast(x, tf.float32))
    if isinstance(y, dict):
        # HGNetV2 gives a map of each stage.
        y = y[list(y)[-1]]
    return y.numpy()


def check_error(preset, *says, shape=SHAPE):
    with pytest.raises(BackboneError) as caught:
        preset_backbone(str(preset), shape, "float32")
    assert caught.value.setting == "preset"
    for text in says:
        assert text in str(caught.value)
