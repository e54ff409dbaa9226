"""Category attention against NumPy float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import random, sigmoid

from easyrec_mm.network.layers.category_attention import CategoryAttention, CategoryEmbeddings

U, HEIGHT, WIDTH, CHANNELS, DIM = 3, 5, 4, 8, 6


def inputs(height=HEIGHT, width=WIDTH):
    return random(U, height, width, CHANNELS, seed=1), random(U, DIM, seed=2), random(U, DIM, seed=3)


def attention(height=HEIGHT, width=WIDTH, reduction=2, kernel_size=7, dtype="float32"):
    """The layer with new values for every weight, and these by their names in float64."""
    layer = CategoryAttention(CHANNELS, height, width, reduction, kernel_size, dtype)
    layer.build((None, height, width, CHANNELS), (None, DIM), (None, DIM))
    weights = {}
    for i, v in enumerate(layer.weights):
        v.assign(random(*v.shape, seed=10 + i) / np.sqrt(max(1, np.prod(v.shape[:-1]))))
        weights[v.path.removeprefix("category_attention/")] = v.numpy().astype(np.float64)
    return layer, weights


def dense(weights, name, x):
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def convolution(x, kernel):
    """One place at a time, zeros around `[U, h, w, 3]` -> `[U, h, w]`."""
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    output = np.empty(x.shape[:3])
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            output[:, i, j] = np.sum(padded[:, i : i + size, j : j + size] * kernel[..., 0], axis=(1, 2, 3))
    return output


def reference(weights, features, channel, spatial):
    features, channel, spatial = (x.astype(np.float64) for x in (features, channel, spatial))

    def mlp(pooled):
        hidden = np.maximum(dense(weights, "channel_hidden", np.concatenate([pooled, channel], axis=1)), 0)
        return dense(weights, "channel_output", hidden)

    by_channel = sigmoid(mlp(features.mean(axis=(1, 2))) + mlp(features.max(axis=(1, 2))))
    features = features * by_channel[:, None, None, :]
    category = dense(weights, "spatial_projection", spatial).reshape(features.shape[:3])
    maps = np.stack([features.max(axis=3), features.mean(axis=3), category], axis=3)
    by_place = sigmoid(convolution(maps, weights["spatial_conv/kernel"]) + weights["spatial_conv/bias"])
    return features * by_place[..., None]


@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (1, 1), (2, 2), (1, 9)])
def test_attention(height, width):
    layer, weights = attention(height, width)
    x = inputs(height, width)
    np.testing.assert_allclose(layer(*x), reference(weights, *x), rtol=1e-5, atol=1e-5)


def test_kernel_size_and_reduction():
    """The hidden layer of the channels is never narrower than 4."""
    layer, weights = attention(reduction=1, kernel_size=3)
    assert weights["channel_hidden/kernel"].shape == (CHANNELS + DIM, CHANNELS)
    assert weights["spatial_conv/kernel"].shape == (3, 3, 3, 1)
    np.testing.assert_allclose(layer(*inputs()), reference(weights, *inputs()), rtol=1e-5, atol=1e-5)
    assert attention(reduction=16)[1]["channel_hidden/kernel"].shape == (CHANNELS + DIM, 4)


def test_the_category_decides_which_channels_and_places_count():
    """Each of its embeddings alone moves the output, and of no other image."""
    layer, _ = attention()
    features, channel, spatial = inputs()
    before = layer(features, channel, spatial).numpy()
    other = random(DIM, seed=9)
    for moved in ("channel", "spatial"):
        changed = {"channel": channel.copy(), "spatial": spatial.copy()}
        changed[moved][1] = other
        after = layer(features, changed["channel"], changed["spatial"]).numpy()
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
        ratio = after[1] / before[1]
        assert ratio.std() > 1e-2
        if moved == "spatial":  # a factor of each place, the same for its channels
            np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-4)


def test_bfloat16_is_near_float32():
    wide, _ = attention()
    narrow, _ = attention(dtype="mixed_bfloat16")
    assert {v.dtype for v in narrow.variables} == {"float32"}
    features, *embeddings = inputs()
    y = narrow(tf.cast(features, tf.bfloat16), *embeddings)
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float32), wide(features, *embeddings), rtol=0.05, atol=0.02)


def test_gradients():
    """Of the features and every weight, by finite differences of the reference."""
    layer, weights = attention(height=2, width=3)
    features, channel, spatial = inputs(2, 3)
    upstream = random(*features.shape, seed=5)
    x = tf.constant(features)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, channel, spatial) * upstream)
    variables = {v.path.removeprefix("category_attention/"): v.value for v in layer.weights}
    gradients = tape.gradient(loss, {**variables, "features": x})

    def value(places):
        return np.sum(reference(places, places["features"], channel, spatial) * upstream)

    rng = np.random.default_rng(6)
    places = {**weights, "features": features.astype(np.float64)}
    for name, gradient in gradients.items():
        direction = rng.normal(size=places[name].shape)
        ends = [value({**places, name: places[name] + step * direction}) for step in (1e-6, -1e-6)]
        expected = (ends[0] - ends[1]) / 2e-6
        assert np.sum(gradient.numpy() * direction) == pytest.approx(expected, rel=1e-3, abs=1e-4), name


def test_weights_have_names_of_their_own():
    """They do not depend on what else the process has built, or a checkpoint would fit no other process."""
    names = [[v.path for v in attention()[0].weights] for _ in range(2)]
    parts = ("channel_hidden", "channel_output", "spatial_projection", "spatial_conv")
    assert names[0] == names[1]
    assert names[0] == [f"category_attention/{part}/{kind}" for part in parts for kind in ("kernel", "bias")]
    for _ in range(2):
        layer = CategoryEmbeddings(4, 2, name="category")
        layer(tf.constant([0], tf.int64))
        assert [v.path for v in layer.weights] == ["category/channel", "category/spatial"]


# Embeddings of categories

IDS = [3, 0, 3]


def test_embeddings_are_rows_of_two_tables():
    layer = CategoryEmbeddings(5, DIM)
    channel, spatial = layer(tf.constant(IDS, tf.int64))
    np.testing.assert_array_equal(channel, layer.channel.numpy()[IDS])
    np.testing.assert_array_equal(spatial, layer.spatial.numpy()[IDS])


def test_initial_embeddings():
    """Two tables of different numbers, normal with deviation 1 / sqrt(dim), cut at two of it."""
    keras.utils.set_random_seed(1)
    layer = CategoryEmbeddings(500, 16)
    layer(tf.constant([0], tf.int64))
    channel, spatial = layer.channel.numpy(), layer.spatial.numpy()
    assert (channel != spatial).all()
    for values in (channel, spatial):
        assert np.abs(values).max() <= 0.5
        assert values.mean() == pytest.approx(0, abs=0.01)
        assert values.std() == pytest.approx(0.88 * 0.25, rel=0.03)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 3e-2)])
def test_gradients_of_the_tables_are_of_the_rows_alone(dtype, tolerance):
    """And equal to those of one-hot ids times a dense table; inside of tf.function too."""
    layer, _ = attention(dtype=dtype)
    embeddings = CategoryEmbeddings(5, DIM)
    ids = tf.constant(IDS, tf.int64)
    embeddings(ids)
    features, upstream = tf.constant(inputs()[0]), random(U, HEIGHT, WIDTH, CHANNELS, seed=5)
    tables = [embeddings.channel.value, embeddings.spatial.value]
    for i, table in enumerate(tables):
        table.assign(random(5, DIM, seed=20 + i))

    def gradients(rows_of):
        with tf.GradientTape() as tape:
            y = layer(tf.cast(features, layer.compute_dtype), *rows_of(ids))
            loss = tf.reduce_sum(tf.cast(y, tf.float32) * upstream)
        return tape.gradient(loss, tables)

    sparse = gradients(embeddings)
    expected = gradients(lambda ids: [tf.matmul(tf.one_hot(ids, 5), table) for table in tables])
    compiled = tf.function(lambda: gradients(embeddings), autograph=False)()
    for actual in (sparse, compiled):
        for rows, dense_gradient in zip(actual, expected, strict=True):
            assert isinstance(rows, tf.IndexedSlices)
            np.testing.assert_array_equal(rows.indices, IDS)
            largest = np.abs(dense_gradient).max()
            assert largest > 1e-2
            np.testing.assert_allclose(tf.convert_to_tensor(rows), dense_gradient, rtol=0, atol=tolerance * largest)


def test_compiled_for_any_number_of_images():
    layer, weights = attention()
    spec = [tf.TensorSpec([None, *x.shape[1:]], tf.float32) for x in inputs()]
    compiled = tf.function(layer, input_signature=spec, autograph=False)
    for count in (U, 1):
        x = [value[:count] for value in inputs()]
        np.testing.assert_allclose(compiled(*map(tf.constant, x)), reference(weights, *x), rtol=1e-5, atol=1e-5)
