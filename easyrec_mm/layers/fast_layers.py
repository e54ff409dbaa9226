"""Layers of image models on TensorFlow's own kernels: fused batch normalisation, depthwise convolution."""

from __future__ import annotations

import keras
import tensorflow as tf


class FusedBatchNorm(keras.layers.BatchNormalization):
    """Keras's BatchNormalization on `FusedBatchNormV3`: float `[N, H, W, C]` -> the same.

    Keras computes moments and a chain of elementwise operations instead, which makes a ResNet-18 step 1.2 times slower
    in float32 and 1.5 times in bfloat16 (docs/benchmarks.md). Statistics are float32 whatever the input's dtype. The
    moving variance takes the unbiased batch variance, as TensorFlow 1 and PyTorch do; Keras takes the biased one.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Normalise by the batch in training (and move the averages), else by the averages."""
        training = bool(training) and self.trainable
        channels = inputs.shape[-1]
        scale = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones([channels])
        offset = tf.convert_to_tensor(self.beta) if self.center else tf.zeros([channels])
        empty = tf.zeros([0])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(scale, tf.float32),
            offset=tf.cast(offset, tf.float32),
            mean=empty if training else tf.convert_to_tensor(self.moving_mean),
            variance=empty if training else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        return outputs


class DepthwiseConv(keras.layers.Conv2D):
    """Keras's Conv2D with a group a channel, on TensorFlow's kernel for it.

    Keras compiles grouped convolutions by XLA, which is slow on a CPU and which ONNX cannot hold.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """float `[N, H, W, C]` -> `[N, h, w, C]`."""
        kernel = tf.transpose(tf.convert_to_tensor(self.kernel), [0, 1, 3, 2])  # [k, k, C, 1]
        strides = [1, *self.strides, 1]
        x = tf.nn.depthwise_conv2d(inputs, kernel, strides, self.padding.upper(), dilations=self.dilation_rate)
        if self.bias is not None:
            x = tf.nn.bias_add(x, tf.convert_to_tensor(self.bias))
        return self.activation(x)


def _is_depthwise(layer: keras.Operation) -> bool:
    return type(layer) is keras.layers.Conv2D and 1 < layer.groups == layer.filters == layer.input.shape[-1]


def with_fast_layers(model: keras.Model, dtype: str) -> keras.Model:
    """A copy of a functional image model with FusedBatchNorm and DepthwiseConv, and all layers computing in `dtype`.

    Args:
      model: the model; its weights are copied.
      dtype: a Keras dtype policy, such as "mixed_bfloat16".
    """

    def clone(layer: keras.Operation) -> keras.Operation:
        config = layer.get_config()
        # An operation such as the + of `x + 3` takes the dtype of its inputs.
        if isinstance(layer, keras.layers.Layer):
            config["dtype"] = dtype
        kind = DepthwiseConv if _is_depthwise(layer) else type(layer)
        kind = FusedBatchNorm if kind is keras.layers.BatchNormalization else kind
        return kind.from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy
