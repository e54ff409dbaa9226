"""Backbones of the image tower: built by name or from a preset, in a given precision, and cut at a given layer.

They come from keras-hub and keras.applications. To add one, add its builder to BACKBONES and its name to
config/image.py. Presets are read in presets.py; stages are found in backbone_stages.py. Shape legend: P pictures,
H x W x C pixels, T tokens of a transformer.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import keras
import numpy as np

from easyrec_mm.network.layers import presets
from easyrec_mm.network.layers.backbone_stages import Stage, stages_of
from easyrec_mm.network.layers.fast_layers import fast_kind, with_fast_layers
from easyrec_mm.network.layers.presets import Normalisation, PresetError

Shape = tuple[int, int, int]


def _by_mean(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Normalisation:
    """Return (x - mean) / deviation as scale and shift."""
    scale = 1.0 / np.array(deviation, np.float32)
    return tuple(scale.tolist()), tuple((-np.array(mean, np.float32) / np.array(deviation, np.float32)).tolist())


IMAGENET = _by_mean((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
MINUS_ONE_TO_ONE = _by_mean((127.5,) * 3, (127.5,) * 3)


class BackboneError(Exception):
    """A backbone that does not exist, cannot be loaded or lacks what the img_model field `setting` requires."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


class Entry(NamedTuple):
    """Builder of a backbone, (height, width, channels) -> functional model of pictures `[P, H, W, C]`."""

    build: Callable[[Shape], keras.Model]
    normalisation: Normalisation


def _resnet(block_type: str, num_blocks: tuple[int, ...], shape: Shape) -> keras.Model:
    import keras_hub  # takes half a second, and only some backbones need it

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(num_blocks),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block_type,
        image_shape=(None, None, shape[2]),
    )


def _vit(width: int, heads: int, shape: Shape) -> keras.Model:
    """Build a ViT (Dosovitskiy et al., ICLR 2021; Touvron et al., ICML 2021 for the tiny and the small one)."""
    import keras_hub

    return keras_hub.models.ViTBackbone(
        image_shape=shape, patch_size=16, num_layers=12, num_heads=heads, hidden_dim=width, mlp_dim=4 * width
    )


def _of_applications(build: Callable[..., keras.Model], shape: Shape) -> keras.Model:
    return build(input_shape=(None, None, shape[2]), include_top=False, weights=None, include_preprocessing=False)


def _mobile_net(build: Callable[..., keras.Model], shape: Shape) -> keras.Model:
    model = _of_applications(build, shape)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # As in Howard et al., ICCV 2019. With Keras's 0.999, averages are of little use for some thousand steps.
            layer.momentum = 0.99
    return model


def _mean_colour(shape: Shape) -> keras.Model:
    """Return the mean colour of each picture instead of a network, for a tower that relies on descriptors."""
    pixels = keras.Input((None, None, shape[2]))
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(pixels))


BACKBONES: dict[str, Entry] = {
    "ResNet-18": Entry(partial(_resnet, "basic_block", (2, 2, 2, 2)), IMAGENET),
    "ResNet-34": Entry(partial(_resnet, "basic_block", (3, 4, 6, 3)), IMAGENET),
    "ResNet-50": Entry(partial(_resnet, "bottleneck_block", (3, 4, 6, 3)), IMAGENET),
    "ResNet-101": Entry(partial(_resnet, "bottleneck_block", (3, 4, 23, 3)), IMAGENET),
    "MobileNetV3-Small": Entry(partial(_mobile_net, keras.applications.MobileNetV3Small), MINUS_ONE_TO_ONE),
    "MobileNetV3-Large": Entry(partial(_mobile_net, keras.applications.MobileNetV3Large), MINUS_ONE_TO_ONE),
    "EfficientNetV2-B0": Entry(partial(_of_applications, keras.applications.EfficientNetV2B0), IMAGENET),
    "ConvNeXt-Tiny": Entry(partial(_of_applications, keras.applications.ConvNeXtTiny), IMAGENET),
    "ViT-Tiny": Entry(partial(_vit, 192, 3), MINUS_ONE_TO_ONE),
    "ViT-Small": Entry(partial(_vit, 384, 6), MINUS_ONE_TO_ONE),
    "ViT-Base": Entry(partial(_vit, 768, 12), MINUS_ONE_TO_ONE),
    "None": Entry(_mean_colour, IMAGENET),
}


@dataclass(frozen=True)
class Backbone:
    """A built backbone.

    model           functional, pictures `[P, H, W, C]` -> `[P, h, w, filters]` or tokens `[P, T, width]`
    normalisation   scale and shift of its pixels
    stages          its stages in the order of the data flow
    num_special     number of leading tokens that stand for no patch of the picture: class and register tokens
    source          text that determines the architecture, for fingerprints
    """

    model: keras.Model
    normalisation: Normalisation
    stages: tuple[Stage, ...]
    num_special: int
    source: str

    @property
    def is_transformer(self) -> bool:
        """Return whether the stages are blocks of attention and dense layers."""
        return not any(stage.block_ends for stage in self.stages)


def named_backbone(name: str, shape: Shape, dtype: str, feature_layer: str = "", min_map_size: int = 0) -> Backbone:
    """Build a backbone with random weights.

    Args:
      name: key of BACKBONES.
      shape: height, width and channels of the pictures.
      dtype: Keras dtype policy of the computation.
      feature_layer: name of the layer whose output is used; "" for the last layer.
      min_map_size: smallest height and width of the feature maps whose stages are kept.

    Raises:
      BackboneError: if feature_layer does not exist or has no suitable output, or no stage has such feature maps.
    """
    entry = BACKBONES[name]
    with _default_dtype(dtype):
        built = entry.build(shape)
    # Transformers have no batch norm, and the layers of keras-hub's transformers cannot be copied one by one.
    model = with_fast_layers(built, dtype) if len(built.output.shape) == 4 else built
    return _finished(model, entry.normalisation, shape, feature_layer, min_map_size, name)


def preset_backbone(preset: str, shape: Shape, dtype: str, feature_layer: str = "", min_map_size: int = 0) -> Backbone:
    """Load the image backbone of a keras-hub preset with its weights; other arguments as for `named_backbone`.

    Args:
      preset: a folder, which is read without network access, or a name that keras-hub knows.

    Raises:
      BackboneError: if it cannot be loaded, is not an image backbone, or takes pictures of another shape.
    """
    try:
        model = presets.load_image_model(preset)
        normalisation = presets.normalisation(preset) or IMAGENET
    except PresetError as error:
        raise BackboneError("preset", str(error)) from error
    preset_shape = model.inputs[0].shape[1:]
    if any(want is not None and want != have for want, have in zip(preset_shape, shape, strict=True)):
        raise BackboneError(
            "preset",
            f"'{preset}' takes pictures of {_size(preset_shape)} (width x height x channels), but would get "
            f"{_size(shape)}; change img_shape or upscale",
        )
    try:
        model.compute_output_spec(keras.KerasTensor((None, *shape)))
    except ValueError as error:
        small = f"'{preset}' cannot take pictures of {_size(shape)} (width x height x channels)"
        raise BackboneError("preset", f"{small}; enlarge img_shape, or set upscale") from error
    source = architecture(model)
    return _finished(in_dtype(model, dtype), normalisation, shape, feature_layer, min_map_size, source)


def _size(shape: Sequence[int | None]) -> str:
    height, width, channels = ("any" if size is None else str(size) for size in shape)
    return f"{width} x {height} x {channels}"


def in_dtype(built: keras.Model, dtype: str) -> keras.Model:
    """Return a keras-hub backbone that computes in `dtype`, with fast layers: the built one or a copy of it."""
    model = built
    if {layer.dtype_policy.name for layer in built._flatten_layers()} != {dtype}:
        with _default_dtype(dtype):
            model = type(built).from_config({**built.get_config(), "dtype": dtype})
        model.set_weights(built.get_weights())
    for layer in model._flatten_layers():
        # Changed in place: the layer may be part of another layer, which cannot be copied with a replacement in it.
        if fast_kind(layer) is not type(layer):
            layer.__class__ = fast_kind(layer)
    return model


def architecture(model: keras.Model) -> str:
    """Return a text that determines the architecture of a model, for fingerprints."""
    return json.dumps({"class": type(model).__name__, "config": model.get_config()}, sort_keys=True, default=str)


@contextmanager
def _default_dtype(dtype: str) -> Iterator[None]:
    """Set the dtype policy of layers that are built without one, such as some parts of models."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _finished(
    built: keras.Model, normalisation: Normalisation, shape: Shape, feature_layer: str, min_map_size: int, source: str
) -> Backbone:
    output = built.output
    if isinstance(output, dict):
        # Feature maps of several stages come in the order of the stages; the last one is used.
        output = output.get("sequence_output", [*output.values()][-1])
    if feature_layer:
        layers = {operation.name: operation for operation in built.operations}
        if feature_layer not in layers:
            nearest = ", ".join(difflib.get_close_matches(feature_layer, layers, n=5, cutoff=0.0))
            raise BackboneError("feature_layer", f"no layer named '{feature_layer}'; nearest names: {nearest}")
        output = layers[feature_layer].output
        if not isinstance(output, keras.KerasTensor) or len(output.shape) not in (3, 4):
            raise BackboneError("feature_layer", f"the output of '{feature_layer}' is neither a feature map nor tokens")
    # A model with one plain input and only the layers up to the output.
    model = keras.Model(built.inputs[0], output)
    if min_map_size and len(output.shape) == 4:
        model = _without_small_maps(model, shape, min_map_size)
    return Backbone(model, normalisation, stages_of(model), _num_special_tokens(model, built, shape), source)


def _without_small_maps(model: keras.Model, shape: Shape, min_map_size: int) -> keras.Model:
    """Return a convolutional backbone without the stages whose feature maps are smaller than that for such pictures."""
    ends = [stage.block_ends[-1] for stage in stages_of(model)]
    specs = keras.Model(model.inputs[0], ends).compute_output_spec(keras.KerasTensor((1, *shape)))
    sizes = [min(spec.shape[1:3]) for spec in specs]
    large = [end for end, size in zip(ends, sizes, strict=True) if size >= min_map_size]
    if not large:
        raise BackboneError(
            "min_map_size",
            f"{min_map_size}, but the largest feature maps have {max(sizes)} positions "
            "a side; lower it, enlarge img_shape, or set upscale",
        )
    return keras.Model(model.inputs[0], large[-1])


def _num_special_tokens(model: keras.Model, built: keras.Model, shape: Shape) -> int:
    """Return by how much the number of tokens exceeds the number of patches."""
    patch = getattr(built, "patch_size", None)
    if len(model.output.shape) != 3 or patch is None:
        return 0
    height, width = (patch, patch) if isinstance(patch, int) else tuple(patch)[:2]
    # Counted by a call, because the shape that keras-hub states for SigLIP's tokens has one token too many.
    num_tokens = int(model(np.zeros((1, *shape), np.float32)).shape[1])
    num_patches: int = (shape[0] // height) * (shape[1] // width)
    return max(0, num_tokens - num_patches)
