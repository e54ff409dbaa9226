"""Converters from tensors of other frameworks to models of keras-hub, one converter per architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]


class Converted(NamedTuple):
    """The parts of a preset, and the classifier that verifies them.

    backbone           pictures `[P, H, W, 3]` of any size -> feature maps `[P, h, w, F]`
    image_converter    normalises the pixels of the pictures
    kernel, bias       classifier of the pretraining: the mean of the feature maps `[P, F]` @ `[F, C]` + `[C]`
    """

    backbone: keras.Model
    image_converter: keras.layers.Layer
    kernel: NDArray[Any]
    bias: NDArray[Any]


class _Stack(NamedTuple):
    """Blocks of the same width; the first block has the stride."""

    kernel_size: int
    repeats: int
    input_filters: int
    output_filters: int
    expansion: int
    stride: int


# The stacks of EfficientNet-B0 (Tan and Le, ICML 2019, table 1), which EfficientNet-Lite0 also has.
_STACKS = (
    _Stack(3, 1, 32, 16, 1, 1),
    _Stack(3, 2, 16, 24, 6, 2),
    _Stack(5, 2, 24, 40, 6, 2),
    _Stack(3, 3, 40, 80, 6, 2),
    _Stack(5, 3, 80, 112, 6, 1),
    _Stack(5, 4, 112, 192, 6, 2),
    _Stack(3, 1, 192, 320, 6, 1),
)


def efficientnet_lite0(tensors: Tensors) -> Converted:
    """Convert EfficientNet-Lite0 (relu6, no squeeze and excitation), named as in lukemelas/EfficientNet-PyTorch."""
    import keras_hub  # takes half a second

    num_stacks = len(_STACKS)
    backbone = keras_hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[stack.kernel_size for stack in _STACKS],
        stackwise_num_repeats=[stack.repeats for stack in _STACKS],
        stackwise_input_filters=[stack.input_filters for stack in _STACKS],
        stackwise_output_filters=[stack.output_filters for stack in _STACKS],
        stackwise_expansion_ratios=[stack.expansion for stack in _STACKS],
        stackwise_strides=[stack.stride for stack in _STACKS],
        stackwise_squeeze_and_excite_ratios=[0] * num_stacks,
        stackwise_width_coefficients=[1.0] * num_stacks,
        stackwise_depth_coefficients=[1.0] * num_stacks,
        # Both kinds are inverted residual blocks. With a stride, "v1" pads both sides equally, as PyTorch does, and
        # "unfused" pads as TensorFlow does, in which the weights were trained: with the other padding, each stride
        # shifts the input of the next layers by half a pixel. Without expansion, "unfused" would project with a kernel
        # larger than 1 x 1.
        stackwise_block_types=["v1" if stack.expansion == 1 else "unfused" for stack in _STACKS],
        include_stem_padding=False,
        stem_conv_padding="same",
        activation="relu6",
        dropout=0,
        batch_norm_momentum=0.99,
        batch_norm_epsilon=1e-3,
        input_shape=(None, None, 3),
    )
    _assign_convolution(backbone.get_layer("stem_conv"), tensors, "_conv_stem")
    _assign_batch_norm(backbone.get_layer("stem_bn"), tensors, "_bn0")
    for number, (name, stack) in enumerate(_block_names()):
        there = f"_blocks.{number}"
        block = block_layers(backbone, name, stack)
        if stack.expansion != 1:
            _assign_convolution(block["expand"], tensors, f"{there}._expand_conv")
            _assign_batch_norm(block["expand_bn"], tensors, f"{there}._bn0")
        _assign_depthwise(block["depthwise"], tensors, f"{there}._depthwise_conv")
        _assign_batch_norm(block["depthwise_bn"], tensors, f"{there}._bn1")
        _assign_convolution(block["project"], tensors, f"{there}._project_conv")
        _assign_batch_norm(block["project_bn"], tensors, f"{there}._bn2")
    _assign_convolution(backbone.get_layer("top_conv"), tensors, "_conv_head")
    _assign_batch_norm(backbone.get_layer("top_bn"), tensors, "_bn1")
    # (x - 127) / 128, as in TensorFlow's efficientnet/lite/efficientnet_lite_builder.py.
    image_converter = keras_hub.layers.EfficientNetImageConverter(scale=1 / 128, offset=-127 / 128)
    return Converted(backbone, image_converter, tensors["_fc.weight"].T, tensors["_fc.bias"])


CONVERTERS: dict[str, Callable[[Tensors], Converted]] = {"efficientnet_lite0": efficientnet_lite0}


def _block_names() -> Iterator[tuple[str, _Stack]]:
    """Yield keras-hub's name of each block (stack number and letter) with its stack, in the order of the data flow."""
    for number, stack in enumerate(_STACKS, 1):
        for repeat in range(stack.repeats):
            yield f"block{number}{chr(ord('a') + repeat)}_", stack


def block_layers(backbone: keras.Model, name: str, stack: _Stack) -> dict[str, keras.layers.Layer]:
    """Return the layers of a block by their roles: expand, depthwise, project, and their batch norms."""
    if stack.expansion == 1:
        names = {"depthwise": "dwconv", "depthwise_bn": "dwconv_bn", "project": "project", "project_bn": "project_bn"}
        return {role: backbone.get_layer(name + layer) for role, layer in names.items()}
    block = backbone.get_layer(name)
    return {
        "expand": block.conv1,
        "expand_bn": block.bn1,
        "depthwise": block.depthwise,
        "depthwise_bn": block.bn2,
        "project": block.output_conv,
        "project_bn": block.bn3,
    }


def _assign_convolution(layer: keras.layers.Conv2D, tensors: Tensors, name: str) -> None:
    """Assign a kernel, transposed from `[out, in, k, k]` to `[k, k, in, out]`."""
    layer.kernel.assign(np.transpose(tensors[f"{name}.weight"], (2, 3, 1, 0)))


def _assign_depthwise(layer: keras.layers.DepthwiseConv2D, tensors: Tensors, name: str) -> None:
    """Assign a kernel, transposed from `[C, 1, k, k]` to `[k, k, C, 1]`."""
    layer.kernel.assign(np.transpose(tensors[f"{name}.weight"], (2, 3, 0, 1)))


def _assign_batch_norm(layer: keras.layers.BatchNormalization, tensors: Tensors, name: str) -> None:
    layer.gamma.assign(tensors[f"{name}.weight"])
    layer.beta.assign(tensors[f"{name}.bias"])
    layer.moving_mean.assign(tensors[f"{name}.running_mean"])
    layer.moving_variance.assign(tensors[f"{name}.running_var"])
