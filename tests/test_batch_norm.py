"""Batch normalisation and convolutions of pictures against NumPy float64 and Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import random, randomise
from thread_replicas import results_of_replicas

from easyrec_mm.network.layers.backbones import BACKBONES
from easyrec_mm.network.layers.batch_norm import BatchNorm, normalize_together
from easyrec_mm.network.layers.fast_layers import DepthwiseConv, FusedBatchNorm, GroupedDepthwiseConv, with_fast_layers

MOMENTUM, EPSILON, CHANNELS = 0.8, 1e-3, 5


def fused_batch_norm(dtype="float32", channels=CHANNELS):
    layer = FusedBatchNorm(momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype, name="bn")
    layer.build((None, None, None, channels))
    weights = randomise(layer, seed=1)
    return layer, {path.split("/")[-1]: value for path, value in weights.items()}


def pictures(dtype="float32", channels=CHANNELS):
    """Values that the dtype can hold, and the same in float64."""
    x = tf.cast(3 * random(4, 6, 5, channels) + 2, dtype)
    return x, tf.cast(x, tf.float64).numpy()


def normalised(x, mean, variance, weights):
    return (x - mean) / np.sqrt(variance + EPSILON) * weights["gamma"] + weights["beta"]


# An output of bfloat16 has 8 bits; statistics are sums in float32 in both. Multiples of 16 have a kernel of their own.
PRECISIONS = pytest.mark.parametrize(("policy", "dtype", "rtol", "channels"), [
    ("float32", "float32", 1e-5, CHANNELS),
    ("mixed_bfloat16", "bfloat16", 1e-2, CHANNELS),
    ("mixed_bfloat16", "bfloat16", 1e-2, 16),
])  # fmt: skip


@PRECISIONS
def test_batch_norm_in_training(policy, dtype, rtol, channels):
    layer, w = fused_batch_norm(policy, channels)
    x, wide = pictures(dtype, channels)
    y = layer(x, training=True)
    assert y.dtype == dtype
    mean, biased, unbiased = wide.mean((0, 1, 2)), wide.var((0, 1, 2)), wide.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(tf.cast(y, tf.float64), normalised(wide, mean, biased, w), rtol=rtol, atol=rtol)
    for average, before, batch in (
        (layer.moving_mean, w["moving_mean"], mean),
        (layer.moving_variance, w["moving_variance"], unbiased),
    ):
        assert average.dtype == "float32"
        np.testing.assert_allclose(average.numpy(), MOMENTUM * before + (1 - MOMENTUM) * batch, rtol=1e-5, atol=1e-6)


@PRECISIONS
@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_by_the_averages(policy, dtype, rtol, channels, frozen):
    """In inference, and in training if the layer is not trainable."""
    layer, w = fused_batch_norm(policy, channels)
    layer.trainable = not frozen
    x, wide = pictures(dtype, channels)
    y = layer(x, training=frozen)
    expected = normalised(wide, w["moving_mean"], w["moving_variance"], w)
    np.testing.assert_allclose(tf.cast(y, tf.float64), expected, rtol=rtol, atol=rtol)
    np.testing.assert_array_equal(layer.moving_mean.numpy(), w["moving_mean"].astype(np.float32))
    np.testing.assert_array_equal(layer.moving_variance.numpy(), w["moving_variance"].astype(np.float32))


def test_batch_norm_gradients():
    """Against those of the formula, by TensorFlow in float64."""
    layer, w = fused_batch_norm()
    x, wide = pictures()
    upstream = random(*x.shape, seed=3)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, training=True) * upstream)
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    wide, gamma, beta = tf.constant(wide), tf.constant(w["gamma"]), tf.constant(w["beta"])
    with tf.GradientTape() as tape:
        tape.watch([wide, gamma, beta])
        mean, variance = tf.nn.moments(wide, [0, 1, 2])
        loss = tf.reduce_sum(((wide - mean) / tf.sqrt(variance + EPSILON) * gamma + beta) * upstream)
    for actual, expected in zip(gradients, tape.gradient(loss, [wide, gamma, beta]), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_inputs_without_elements_have_no_gradients_and_keep_the_averages():
    """As those of a worker that has no samples of the last batch."""
    layer = BatchNorm(momentum=MOMENTUM, epsilon=EPSILON)
    layer.build((None, CHANNELS))
    weights = randomise(layer, seed=1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.zeros([0, CHANNELS]), training=True))
    for gradient in tape.gradient(loss, [layer.gamma.value, layer.beta.value]):
        np.testing.assert_array_equal(gradient, np.zeros(CHANNELS))
    for path, value in weights.items():
        now = next(v for v in layer.variables if v.path == path)
        np.testing.assert_allclose(now, value, rtol=1e-6, err_msg=path)


def test_layers_that_are_computed_together_keep_their_own_averages_without_elements():
    layers = [BatchNorm(momentum=MOMENTUM, epsilon=EPSILON) for _ in range(2)]
    for seed, layer in enumerate(layers):
        layer.build((None, CHANNELS))
        randomise(layer, seed=seed)
    before = [layer.moving_mean.numpy() for layer in layers]
    normalize_together(layers, tf.zeros([0, 2, CHANNELS]), training=True)
    for layer, average in zip(layers, before, strict=True):
        np.testing.assert_allclose(layer.moving_mean, average, rtol=1e-6)


def test_common_statistics_are_those_of_the_replica_with_elements():
    x = random(7, CHANNELS)

    def normalise(replicas):
        layer = BatchNorm(momentum=MOMENTUM, epsilon=EPSILON, name="bn")
        layer.replicas = replicas if replicas.num > 1 else None
        with replicas.scope("test"):
            y = layer(x[: 7 * (replicas.number == 0)], training=True)
        return y.numpy(), layer.moving_mean.numpy(), layer.moving_variance.numpy()

    ((expected, *averages),) = results_of_replicas(1, normalise)
    (of_first, *averages_of_first), (of_second, *averages_of_second) = results_of_replicas(2, normalise)
    np.testing.assert_allclose(of_first, expected, atol=1e-5)
    assert of_second.shape == (0, CHANNELS)
    np.testing.assert_allclose(averages_of_first, averages, atol=1e-6)
    np.testing.assert_array_equal(averages_of_second, averages_of_first)


def test_batch_norm_without_scale_and_offset():
    layer = FusedBatchNorm(scale=False, center=False, epsilon=EPSILON)
    x, wide = pictures()
    y = layer(x, training=True)
    expected = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + EPSILON)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert [v.name for v in layer.weights] == ["moving_mean", "moving_variance"]


def small_mobile_net(shape):
    return keras.applications.MobileNetV3Small(
        input_shape=(None, None, shape[2]),
        include_top=False,
        weights=None,
        include_preprocessing=False,
        minimalistic=False,
    )


@pytest.mark.parametrize(
    "build",
    [BACKBONES["ResNet-18"].build, BACKBONES["MobileNetV3-Large"].build, small_mobile_net],
    ids=["ResNet", "MobileNet", "MobileNetV3Small"],
)
def test_copy_with_fast_layers(build):
    """Every weight and every output in inference are those of Keras's own model."""
    original = build((32, 32, 3))
    randomise(original)
    copy = with_fast_layers(original, "float32")
    kinds = {type(layer) for layer in copy.layers}
    assert FusedBatchNorm in kinds
    assert keras.layers.BatchNormalization not in kinds
    paths = [v.path for v in original.variables]
    assert [v.path for v in copy.variables] == paths
    assert len(set(paths)) == len(paths)
    for v, other in zip(copy.variables, original.variables, strict=True):
        np.testing.assert_array_equal(v.numpy(), other.numpy())
    x = tf.constant(random(2, 32, 32, 3))
    expected = original(x, training=False).numpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(copy(x, training=False), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("backbone", ["ResNet-18", "MobileNetV3-Small"])
def test_backbone_in_bfloat16(backbone):
    """Every layer computes in bfloat16 on variables of float32, and training moves the averages."""
    copy = with_fast_layers(BACKBONES[backbone].build((32, 32, 1)), "mixed_bfloat16")
    assert {layer.compute_dtype for layer in copy.layers[1:]} == {"bfloat16"}  # behind the input
    assert {v.dtype for v in copy.variables} == {"float32"}
    x = tf.cast(random(2, 32, 32, 1), tf.bfloat16)
    assert copy(x, training=False).dtype == tf.bfloat16
    averages = [v for v in copy.variables if v.name == "moving_variance"]
    copy(x, training=True)
    assert averages
    assert all((v.numpy() != 1).any() for v in averages)


@pytest.mark.parametrize("kind", [DepthwiseConv, GroupedDepthwiseConv])
@pytest.mark.parametrize(("size", "strides", "padding"), [(3, 1, "same"), (3, 2, "valid"), (5, 1, "same")])
def test_depthwise_convolution_is_that_of_keras(kind, size, strides, padding):
    """In bfloat16, too, of which a CPU has a part of the kernels only."""
    inputs = keras.Input((9, 9, 6))
    if kind is DepthwiseConv:
        conv = keras.layers.DepthwiseConv2D(size, strides, padding, activation="relu", name="conv")
    else:
        conv = keras.layers.Conv2D(6, size, strides, padding, groups=6, activation="relu", name="conv")
    original = keras.Model(inputs, conv(inputs))
    randomise(original)
    copy = with_fast_layers(original, "float32")
    assert type(copy.get_layer("conv")) is kind
    x = tf.constant(random(2, 9, 9, 6))
    expected = original(x).numpy()
    np.testing.assert_allclose(copy(x), expected, rtol=1e-5, atol=1e-6)
    half = with_fast_layers(original, "mixed_bfloat16")(tf.cast(x, tf.bfloat16))
    assert half.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(half, tf.float32), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())
