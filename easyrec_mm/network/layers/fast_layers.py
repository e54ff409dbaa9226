"""Layers of image models on TensorFlow's own kernels: fused batch normalisation, depthwise convolution.

On a CPU, some of these kernels have only slow reference implementations for bfloat16. There the layers compute in
float32 between casts, which made a step of MobileNetV3-Large in bfloat16 1.7 times faster (docs/benchmarks.md).
"""

from __future__ import annotations

import keras
import tensorflow as tf

from easyrec_mm.network.layers.batch_norm import BatchNorm

# oneDNN normalises bfloat16 in blocks of this many channels.
_BFLOAT16_CHANNELS = 16


class FusedBatchNorm(BatchNorm):
    """Keras's BatchNormalization on `FusedBatchNormV3`: float `[N, H, W, C]` -> the same.

    Keras computes moments and a chain of elementwise operations instead, which makes a ResNet-18 step 1.2 times slower
    in float32 and 1.5 times in bfloat16 (docs/benchmarks.md). Statistics are float32 whatever the input's dtype. The
    moving variance takes the unbiased batch variance, as TensorFlow 1 and PyTorch do; Keras takes the biased one.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Normalise by the batch in training and update the moving averages; otherwise normalise by the averages."""
        training = bool(training) and self.trainable
        channels = inputs.shape[-1]
        scale = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones([channels])
        offset = tf.convert_to_tensor(self.beta) if self.center else tf.zeros([channels])
        if training and self.replicas is not None:
            mean, variance, number = self.replicas.moments(inputs, (0, 1, 2))
            self._follow(mean, variance * number / tf.maximum(number - 1.0, 1.0), is_empty=tf.equal(number, 0))
            x = tf.cast(inputs, tf.float32)
            return tf.cast(tf.nn.batch_normalization(x, mean, variance, offset, scale, self.epsilon), inputs.dtype)
        empty = tf.zeros([0])
        is_slow = channels % _BFLOAT16_CHANNELS != 0 and _is_cpu_bfloat16(inputs)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(inputs, tf.float32) if is_slow else inputs,
            scale=tf.cast(scale, tf.float32),
            offset=tf.cast(offset, tf.float32),
            mean=empty if training else tf.convert_to_tensor(self.moving_mean),
            variance=empty if training else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            self._follow(mean, variance)
        return tf.cast(outputs, inputs.dtype)

    def _follow(self, mean: tf.Tensor, variance: tf.Tensor, is_empty: tf.Tensor | bool = False) -> None:
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            followed = average * self.momentum + value * (1.0 - self.momentum)
            average.assign(followed if is_empty is False else tf.where(is_empty, average, followed))


class DepthwiseConv(keras.layers.DepthwiseConv2D):
    """Keras's DepthwiseConv2D, computed in float32 where bfloat16 is slow."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolve float `[N, H, W, C]` to `[N, h, w, C * depth_multiplier]`."""
        return _depthwise(self, inputs, tf.convert_to_tensor(self.kernel))


class GroupedDepthwiseConv(keras.layers.Conv2D):
    """Keras's Conv2D with one group per channel, on TensorFlow's depthwise kernel.

    Keras compiles grouped convolutions with XLA, which is slow on a CPU and cannot be exported to ONNX.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolve float `[N, H, W, C]` to `[N, h, w, C]`."""
        kernel = tf.transpose(tf.convert_to_tensor(self.kernel), [0, 1, 3, 2])  # [k, k, C, 1]
        return _depthwise(self, inputs, kernel)


def fast_kind(layer: keras.Operation) -> type[keras.Operation]:
    """Return the class of this module that computes what a built layer does, else the layer's own class."""
    kind = type(layer)
    if kind is keras.layers.BatchNormalization:
        return FusedBatchNorm if layer.input_spec.ndim == 4 and layer.axis in (-1, 3) else kind
    if kind is keras.layers.DepthwiseConv2D:
        return DepthwiseConv
    is_depthwise = kind is keras.layers.Conv2D and 1 < layer.groups == layer.filters and layer.kernel.shape[2] == 1
    return GroupedDepthwiseConv if is_depthwise else kind


def with_fast_layers(model: keras.Model, dtype: str) -> keras.Model:
    """Copy a functional image model with the layers of this module, all of which compute in `dtype`.

    Args:
      model: the model; its weights are copied.
      dtype: a Keras dtype policy, such as "mixed_bfloat16".
    """

    def clone(layer: keras.Operation) -> keras.Operation:
        config = layer.get_config()
        # An operation such as the + of `x + 3` takes the dtype of its inputs.
        if isinstance(layer, keras.layers.Layer):
            config["dtype"] = dtype
        return fast_kind(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def _depthwise(layer: keras.layers.Layer, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    strides, dilation = layer.strides, layer.dilation_rate
    # oneDNN supports 3 x 3 kernels without strides; otherwise Eigen's reference is up to 24 times slower in bfloat16.
    has_bfloat16 = tuple(layer.kernel_size) == (3, 3) and {*strides, *dilation} == {1}
    if not has_bfloat16 and _is_cpu_bfloat16(inputs):
        x, kernel = tf.cast(inputs, tf.float32), tf.cast(kernel, tf.float32)
    else:
        x, kernel = inputs, tf.cast(kernel, inputs.dtype)
    x = tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], layer.padding.upper(), dilations=dilation)
    x = tf.cast(x, inputs.dtype)
    if layer.bias is not None:
        x = tf.nn.bias_add(x, tf.cast(tf.convert_to_tensor(layer.bias), x.dtype))
    return layer.activation(x)


def _is_cpu_bfloat16(x: tf.Tensor) -> bool:
    return x.dtype == tf.bfloat16 and not tf.config.list_physical_devices("GPU")
