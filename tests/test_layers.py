"""Layers against NumPy float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from feature_helpers import combo_feature, id_feature, id_sequence, raw_feature, raw_sequence, tag_feature

from easyrec_mm.features.feature import Table
from easyrec_mm.features.sequence_feature import SequenceFeature
from easyrec_mm.network.layers.backbones import BACKBONES, named_backbone
from easyrec_mm.network.layers.dnn import DNN, ExpertMixture, Highway
from easyrec_mm.network.layers.embedding import EmbeddingTable, FeatureEmbedding, combine, feature_vector
from easyrec_mm.network.layers.fast_layers import DepthwiseConv, FusedBatchNorm, GroupedDepthwiseConv, with_fast_layers
from easyrec_mm.network.layers.image_tower import ImageTower
from easyrec_mm.network.layers.target_attention import TargetAttention
from easyrec_mm.schema import IMAGE_KEY, Attention


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def randomise(layer, seed=0):
    """New values for every weight, positive ones for variances; name -> value in float64."""
    rng = np.random.default_rng(seed)
    values = {}
    for v in layer.weights:
        if v.dtype != "float32":
            continue
        value = rng.normal(size=v.shape) / np.sqrt(max(1, np.prod(v.shape[:-1])))
        if "variance" in v.name or "gamma" in v.name:
            value = rng.uniform(0.5, 1.5, v.shape)
        v.assign(value.astype(np.float32))
        values[v.path] = v.numpy().astype(np.float64)
    return values


# Batch normalisation of pictures

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


# Dense layers


def dnn_reference(w, path, x, units, activation, use_bn):
    for i in range(len(units)):
        x = x @ w[f"{path}/dense_{i}/kernel"] + w[f"{path}/dense_{i}/bias"]
        if use_bn:
            bn = f"{path}/bn_{i}"
            x = (x - w[f"{bn}/moving_mean"]) / np.sqrt(w[f"{bn}/moving_variance"] + 1e-3)
            x = x * w[f"{bn}/gamma"] + w[f"{bn}/beta"]
        x = activation(x)
    return x


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "swish": lambda x: x * sigmoid(x),
    "linear": lambda x: x,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("use_bn", [False, True])
def test_dnn(activation, use_bn):
    layer = DNN([6, 4], activation=activation, use_bn=use_bn, name="dnn")
    x = random(7, 5)
    layer(x)
    w = randomise(layer)
    expected = dnn_reference(w, "dnn", x, [6, 4], ACTIVATIONS[activation], use_bn)
    np.testing.assert_allclose(layer(x, training=False), expected, rtol=1e-5, atol=1e-5)


def test_dnn_normalises_by_the_batch_in_training():
    layer = DNN([4], activation="linear")
    x = random(50, 3)
    y = layer(x, training=True).numpy()
    np.testing.assert_allclose(y.mean(axis=0), np.zeros(4), atol=1e-5)
    z = x @ layer.weights[0].numpy()
    np.testing.assert_allclose(y, (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-3), rtol=1e-4, atol=1e-5)


def test_dropout_is_for_training():
    """It zeroes its share of the outputs, scales the rest, and draws anew in every step; layer 1 has none."""
    x = np.ones((4000, 3), np.float32)
    layer = DNN([1, 5], dropout=[0.0, 0.25], activation="linear", use_bn=False)
    without = layer(x, training=False).numpy()
    np.testing.assert_array_equal(layer(x, training=False), without)
    first, second = layer(x, training=True).numpy(), layer(x, training=True).numpy()
    assert (first != second).any()
    assert (first == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(first[first != 0], (without / 0.75)[first != 0], rtol=1e-6)


def test_state_of_dropout_has_a_name_of_its_own():
    """The name does not depend on what else the process has built, or a checkpoint would fit no other process."""
    names = []
    for _ in range(2):
        layer = DNN([2, 2, 2], dropout=[0.5, 0.0, 0.5], name="dnn")
        layer(random(1, 2))
        names.append([v.path for v in layer.variables if "seed" in v.path])
    assert names[0] == names[1] == ["dnn/dropout_0/seed_generator_state", "dnn/dropout_2/seed_generator_state"]


def test_dropout_repeats_from_its_state():
    layer = DNN([8], dropout=[0.5], use_bn=False)
    x = random(20, 3)
    layer(x)
    state = next(v for v in layer.variables if "seed" in v.path)
    saved = state.numpy()
    first, second = layer(x, training=True).numpy(), layer(x, training=True).numpy()
    state.assign(saved)
    np.testing.assert_array_equal(layer(x, training=True), first)
    np.testing.assert_array_equal(layer(x, training=True), second)


def test_dnn_l2():
    """EasyRec's l2_regularization r adds r / 2 * sum(w^2) over the kernels, not over biases and batch norm."""
    layer = DNN([4, 2], l2=0.3, name="dnn")
    layer(random(2, 3))
    w = randomise(layer)
    kernels = sum(np.sum(value**2) for path, value in w.items() if path.endswith("/kernel"))
    assert float(tf.add_n(layer.losses)) == pytest.approx(0.15 * kernels, rel=1e-5)


def test_highway():
    layer = Highway(4, name="highway")
    x = random(6, 3)
    layer(x)
    w = randomise(layer)

    def dense(name, x):
        return x @ w[f"highway/{name}/kernel"] + w[f"highway/{name}/bias"]

    projected = np.maximum(dense("input_projection", x), 0)
    gate = sigmoid(dense("gate", projected))
    expected = gate * np.maximum(dense("transform", projected), 0) + (1 - gate) * projected
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_expert_mixture():
    layer = ExpertMixture([DNN([6, 4], name=f"expert_{e}") for e in range(3)], num_tasks=2, l2=0.0, name="mmoe")
    x = random(5, 7)
    layer(x)
    w = randomise(layer)
    experts = [dnn_reference(w, f"mmoe/expert_{e}", x, [6, 4], ACTIVATIONS["relu"], True) for e in range(3)]
    outputs = layer(x, training=False)
    assert len(outputs) == 2
    for t, output in enumerate(outputs):
        z = np.exp(x @ w[f"mmoe/gate_{t}/kernel"] + w[f"mmoe/gate_{t}/bias"])
        gate = z / z.sum(axis=1, keepdims=True)
        expected = sum(gate[:, e : e + 1] * experts[e] for e in range(3))
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


# Embeddings


def of_ids(name, make, width, table, **settings):
    return make(name, (name,), width, table, "identity", 9, **settings)


def of_numbers(name, make, width, table=None, **settings):
    return make(name, (name,), width, table, **settings)


def table(name, rows, dim):
    return Table(name, rows, dim, ("random_normal", (0.0, 1.0)))


FEATURES = (
    of_ids("user", id_feature, 3, table="user"),
    of_ids("cross", combo_feature, 2, table="cross"),
    of_numbers("price", raw_feature, 1),
    of_numbers("vector", raw_feature, 2, dim=2),
    of_numbers("vector_table", raw_feature, 3, dim=2, table="vector_table"),
    of_numbers("bucket", raw_feature, 4, boundaries=(1.0, 2.0, 3.0)),
    of_numbers("bucket_table", raw_feature, 2, boundaries=(1.0, 2.0), table="bucket_table"),
    of_ids("mean", tag_feature, 3, table="tags", combiner="mean", separator="|"),
    of_ids("sum", tag_feature, 3, table="tags", combiner="sum", separator="|"),
    of_ids("sqrtn", tag_feature, 3, table="tags", combiner="sqrtn", separator="|"),
    of_ids("w_mean", tag_feature, 3, table="tags", combiner="mean", kv_separator=":", separator="|"),
    of_ids("w_sum", tag_feature, 3, table="tags", combiner="sum", kv_separator=":", separator="|"),
    of_ids("w_sqrtn", tag_feature, 3, table="tags", combiner="sqrtn", kv_separator=":", separator="|"),
    of_ids("friend", id_feature, 3, table="user"),
    of_ids("seen_mean", id_sequence, 3, table="tags", combiner="mean", separator="|"),
    of_ids("seen_sum", id_sequence, 3, table="tags", combiner="sum", separator="|"),
    of_ids("seen_max", id_sequence, 3, table="tags", combiner="max", separator="|"),
    of_numbers("numbers", raw_sequence, 2, combiner="max", dim=2, separator="|"),
    of_numbers("numbers_table", raw_sequence, 3, combiner="mean", dim=2, table="vector_table", separator="|"),
    of_numbers("buckets", raw_sequence, 4, combiner="sum", boundaries=(1.0, 2.0, 3.0), separator="|"),
    of_numbers(
        "buckets_table", raw_sequence, 2, combiner="max", boundaries=(1.0, 2.0), table="bucket_table", separator="|"
    ),
)
TABLES = (
    table("user", 6, 3),
    table("cross", 4, 2),
    table("vector_table", 2, 3),
    table("bucket_table", 3, 2),
    table("tags", 7, 3),
)
TAGS = [[0, 3, 3], [], [6], [1, 2, 4, 5], []]
WEIGHTS = [[0.5, 2.0, -1.0], [], [3.0], [0.0, 0.25, 1.5, 2.0], []]


# Of as many elements as TAGS.
SEQUENCES = {
    "numbers": random(8, 2, seed=3),
    "numbers_table": random(8, 2, seed=4),
    "buckets": np.array([0, 3, 3, 1, 2, 0, 0, 1]),
    "buckets_table": np.array([2, 2, 0, 1, 0, 1, 1, 2]),
}


def values():
    """Five samples."""
    found = {
        "user": tf.constant([5, 0, 2, 2, 5], tf.int64),
        "friend": tf.constant([1, 1, 0, 5, 4], tf.int64),
        "cross": tf.constant([3, 1, 0, 0, 2], tf.int64),
        "price": tf.constant(random(5, 1)),
        "vector": tf.constant(random(5, 2, seed=1)),
        "vector_table": tf.constant(random(5, 2, seed=2)),
        "bucket": tf.constant([0, 3, 1, 2, 0], tf.int64),
        "bucket_table": tf.constant([2, 2, 0, 1, 0], tf.int64),
    }
    for name in ("mean", "sum", "sqrtn"):
        found[name] = found[f"w_{name}"] = tf.ragged.constant(TAGS, tf.int64)
        found[f"w_{name}:weight"] = tf.ragged.constant(WEIGHTS, tf.float32)
    for name in ("mean", "sum", "max"):
        found[f"seen_{name}"] = tf.ragged.constant(TAGS, tf.int64)
    lengths = [len(tags) for tags in TAGS]
    for name, value in SEQUENCES.items():
        found[name] = tf.RaggedTensor.from_row_lengths(tf.constant(value), lengths)
    return found


def combined(rows, tags, weights, combiner):
    """One sample."""
    total = sum((w * rows[t] for t, w in zip(tags, weights, strict=True)), np.zeros(rows.shape[1]))
    divisor = {"mean": sum(weights), "sum": 1.0, "sqrtn": np.sqrt(sum(w * w for w in weights))}[combiner]
    return total / divisor if tags else total


def pooled(vectors, how):
    """Vectors of all elements -> one a sample."""
    ends = np.cumsum([len(tags) for tags in TAGS])
    samples = [vectors[end - len(tags) : end] for end, tags in zip(ends, TAGS, strict=True)]
    pool = {"mean": np.mean, "sum": np.sum, "max": np.max}[how]
    return np.array([pool(some, axis=0) if len(some) else np.zeros(vectors.shape[1]) for some in samples])


def feature_columns(w):
    """Feature -> its columns `[5, width]`, of tables `w`."""
    found = {name: value.numpy() for name, value in values().items() if not isinstance(value, tf.RaggedTensor)}
    columns = {
        "user": w["user"][found["user"]],
        "cross": w["cross"][found["cross"]],
        "price": found["price"],
        "vector": found["vector"],
        "vector_table": found["vector_table"] @ w["vector_table"],
        "bucket": np.eye(4)[found["bucket"]],
        "bucket_table": w["bucket_table"][found["bucket_table"]],
        "friend": w["user"][found["friend"]],
    }
    for name in ("mean", "sum", "sqrtn"):
        ones = [[1.0] * len(tags) for tags in TAGS]
        columns[name] = np.array([combined(w["tags"], *s, name) for s in zip(TAGS, ones, strict=True)])
        columns[f"w_{name}"] = np.array([combined(w["tags"], *s, name) for s in zip(TAGS, WEIGHTS, strict=True)])
    for name in ("mean", "sum", "max"):
        columns[f"seen_{name}"] = pooled(w["tags"][np.concatenate(TAGS).astype(int)], name)
    columns["numbers"] = pooled(SEQUENCES["numbers"], "max")
    columns["numbers_table"] = pooled(SEQUENCES["numbers_table"] @ w["vector_table"], "mean")
    columns["buckets"] = pooled(np.eye(4)[SEQUENCES["buckets"]], "sum")
    columns["buckets_table"] = pooled(w["bucket_table"][SEQUENCES["buckets_table"]], "max")
    return columns


def padded_values():
    """The same values as features/numpy_transform.py gives them."""
    found = values()
    for f in FEATURES:
        if f.is_list:
            value = found[f.name]
            weights = found.get(f.weight_key, value.with_flat_values(tf.ones(value.flat_values.shape[0])))
            # One more than the longest: padding changes nothing.
            shape = [None, value.bounding_shape()[1] + 1]
            found[f.weight_key] = weights.to_tensor(shape=shape)
            found[f.name] = value.to_tensor(shape=[*shape, *value.shape[2:]])
    return found


@pytest.mark.parametrize("joins_key", [False, True])
def test_attentions_join_behind_the_features(joins_key):
    """A feature that only an attention reads does not join; what is attended to counts among the squares."""
    features = (
        of_ids("user", id_feature, 3, table="user"),
        of_ids("friend", id_feature, 3, table="user", is_joined=False),
        of_ids("seen_mean", id_sequence, 3, table="tags", combiner="mean", separator="|"),
        of_ids("seen_max", id_sequence, 3, table="tags", combiner="max", is_joined=False, separator="|"),
        of_numbers("numbers", raw_sequence, 2, combiner="max", dim=2, is_joined=False, separator="|"),
    )
    attention = Attention("din", ("friend", IMAGE_KEY, "user"), ("seen_mean", "numbers", "seen_max"), 8, joins_key)
    attend = TargetAttention(DNN([4, 1], ends_linear=True), "attention_din")
    layer = FeatureEmbedding(features, TABLES, [(attention, attend)])
    image = tf.constant(random(5, 2, seed=8))
    output, squares = layer(values(), image)
    w = {name: t.embeddings.numpy() for name, t in layer.tables.items()}
    found = values()
    key = np.concatenate([w["user"][found["friend"]], image, w["user"][found["user"]]], axis=1)
    elements = w["tags"][np.concatenate(TAGS).astype(int)]
    history = np.concatenate([elements, SEQUENCES["numbers"], elements], axis=1)
    expected = attend(tf.constant(key), found["numbers"].with_flat_values(tf.constant(history)))
    joined = [w["user"][found["user"]], pooled(elements, "mean"), expected.numpy(), *([key] if joins_key else [])]
    np.testing.assert_allclose(output, np.concatenate(joined, axis=1), rtol=1e-5, atol=1e-6)
    of_tables = [w["user"][found["user"]], w["user"][found["friend"]], joined[1], elements, elements]
    assert float(squares) == pytest.approx(sum(np.sum(x**2) for x in of_tables), rel=1e-5)
    rows = {f.name: layer.rows(f, found[f.name]) for f in features}
    padded = padded_values()
    tags = layer.tables["tags"]
    rows |= {f.name: tags.lookup(padded[f.name]) for f in features if isinstance(f, SequenceFeature) and f.table}
    given = {n: v for n, v in padded.items() if n not in ("seen_mean", "seen_max")}
    np.testing.assert_allclose(layer.join(given, rows, image)[0], output, rtol=1e-5, atol=1e-6)


def test_padded_lists_are_combined_as_ragged_ones():
    layer = FeatureEmbedding(FEATURES, TABLES)
    expected, _ = layer(values())
    padded = padded_values()
    vectors = []
    for f in FEATURES:
        rows = None
        if f.table:
            table = layer.tables[f.table]
            rows = table.embeddings.value if f.multiplies_rows else table.lookup(padded[f.name])
        given = {name: value for name, value in padded.items() if rows is None or name != f.name or f.multiplies_rows}
        vectors.append(feature_vector(f, given, rows))
    np.testing.assert_allclose(tf.concat(vectors, axis=1), expected, rtol=1e-5, atol=1e-6)


def test_feature_embedding():
    layer = FeatureEmbedding(FEATURES, TABLES)
    w = {name: t.embeddings.numpy().astype(np.float64) for name, t in layer.tables.items()}
    assert {name: value.shape for name, value in w.items()} == {t.name: (t.rows, t.dim) for t in TABLES}
    columns = feature_columns(w)
    output, squares = layer(values())
    expected = np.concatenate([columns[f.name] for f in FEATURES], axis=1)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    assert output.shape[1] == sum(f.width for f in FEATURES)
    of_tables = sum(np.sum(columns[f.name] ** 2) for f in FEATURES if f.table)
    assert float(squares) == pytest.approx(of_tables, rel=1e-5)


def test_feature_embedding_gradient_is_rows():
    """Gradients of the tables are the rows of the batch, those of all features of a table added up."""
    layer = FeatureEmbedding(FEATURES, TABLES)
    upstream = random(5, sum(f.width for f in FEATURES), seed=5)
    variables = {name: t.embeddings.value for name, t in layer.tables.items()}
    with tf.GradientTape() as tape:
        output, _ = layer(values())
        loss = tf.reduce_sum(output * upstream)
    gradients = tape.gradient(loss, variables)
    ends = np.cumsum([f.width for f in FEATURES])
    up = {f.name: upstream[:, end - f.width : end] for f, end in zip(FEATURES, ends, strict=True)}
    used = {"user": {0, 1, 2, 4, 5}, "cross": {0, 1, 2, 3}, "tags": set(range(7)), "bucket_table": {0, 1, 2}}
    for name, gradient in gradients.items():
        assert isinstance(gradient, tf.IndexedSlices), name
        if name in used:
            assert set(gradient.indices.numpy().tolist()) == used[name]
    expected = np.zeros((6, 3))
    np.add.at(expected, values()["user"].numpy(), up["user"])
    np.add.at(expected, values()["friend"].numpy(), up["friend"])
    np.testing.assert_allclose(tf.convert_to_tensor(gradients["user"]), expected, rtol=1e-5, atol=1e-5)
    expected = np.zeros((7, 3))
    rows = layer.tables["tags"].embeddings.numpy()
    for s, tags in enumerate(TAGS):
        np.add.at(expected, tags, up["seen_sum"][s])
        np.add.at(expected, tags, up["seen_mean"][s] / max(len(tags), 1))
        for column in range(3) if tags else ():
            # The largest number takes the gradient, in equal shares where elements are equal.
            found = rows[tags, column]
            largest = np.flatnonzero(found == found.max())
            np.add.at(expected[:, column], np.array(tags)[largest], up["seen_max"][s, column] / len(largest))
    for combiner in ("mean", "sum", "sqrtn"):
        for prefix, weights in (("", [[1.0] * len(tags) for tags in TAGS]), ("w_", WEIGHTS)):
            for s, (tags, weight) in enumerate(zip(TAGS, weights, strict=True)):
                divisor = {"mean": sum(weight), "sum": 1.0, "sqrtn": np.sqrt(sum(w * w for w in weight))}[combiner]
                for tag, w in zip(tags, weight, strict=True):
                    expected[tag] += w / divisor * up[prefix + combiner][s]
    np.testing.assert_allclose(tf.convert_to_tensor(gradients["tags"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn", "max"])
def test_combine_nothing(combiner):
    """No sample has a tag; weights that add up to zero; no samples at all."""
    empty = tf.RaggedTensor.from_row_splits(tf.zeros([0], tf.int64), [0, 0, 0])
    np.testing.assert_array_equal(combine(tf.zeros([0, 3]), empty, None, combiner), np.zeros((2, 3)))
    none = tf.RaggedTensor.from_row_splits(tf.zeros([0], tf.int64), [0])
    assert combine(tf.zeros([0, 3]), none, None, combiner).shape == (0, 3)
    tags = tf.ragged.constant([[1, 2]], tf.int64)
    if combiner == "max":
        return
    zero = combine(tf.ones([2, 3]), tags, tags.with_flat_values(tf.zeros(2)), combiner)
    np.testing.assert_array_equal(zero, np.zeros((1, 3)))


def test_lookup_does_not_read_the_whole_table():
    layer = EmbeddingTable(table("t", 977, 3))
    lookup = tf.function(layer.lookup, autograph=False)
    graph = lookup.get_concrete_function(tf.TensorSpec([None], tf.int64)).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert "ResourceGather" in kinds
    assert "ReadVariableOp" not in kinds
    assert not any(977 in (out.shape or []) for op in graph.get_operations() for out in op.outputs if out.shape.rank)


def test_initializers():
    def initial(kind, *parameters, rows=20000, dim=4):
        keras.utils.set_random_seed(1)
        return EmbeddingTable(Table("t", rows, dim, (kind, parameters))).embeddings.numpy()

    normal = initial("random_normal", 0.5, 2.0)
    assert normal.mean() == pytest.approx(0.5, abs=0.05)
    assert normal.std() == pytest.approx(2.0, rel=0.02)
    truncated = initial("truncated_normal", 0.5, 2.0)
    assert truncated.mean() == pytest.approx(0.5, abs=0.05)
    # A normal distribution cut at two deviations has 0.87963 of its deviation.
    assert truncated.std() == pytest.approx(2.0 * 0.87963, rel=0.02)
    assert np.abs(truncated - 0.5).max() <= 4.0
    glorot = initial("glorot_normal")
    assert glorot.mean() == pytest.approx(0, abs=2e-4)
    assert glorot.std() == pytest.approx(np.sqrt(2 / (20000 + 4)), rel=0.02)
    np.testing.assert_array_equal(initial("constant", 0.25), np.full((20000, 4), 0.25))
    each = initial("constant", 1.0, 2.0, 3.0, 4.0, rows=3)
    np.testing.assert_array_equal(each, np.tile([1.0, 2.0, 3.0, 4.0], (3, 1)))


# The image tower


def identity_backbone(monkeypatch, channels=3):
    """A backbone that gives back its input; batch norm as it starts, without epsilon."""
    inputs = keras.Input((None, None, channels))
    model = keras.Model(inputs, keras.layers.BatchNormalization(epsilon=0.0, name="bn")(inputs))
    for name, backbone in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, name, backbone._replace(build=lambda shape: model))


def make_tower(backbone, projection, head, dtype, channels=3, options=None):
    shape = (6, 4, channels)
    return ImageTower(named_backbone(backbone, shape, dtype), shape, projection, head, dtype, options)


@pytest.mark.parametrize(("backbone", "mean", "deviation"), [
    ("ResNet-18", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]), ("MobileNetV3-Large", [127.5] * 3, [127.5] * 3),
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_image_tower(monkeypatch, backbone, mean, deviation, dtype):
    """Pixels are normalised, averaged over the picture and projected, and go through the head."""
    identity_backbone(monkeypatch)
    tower = make_tower(backbone, 4, Highway(5, "highway"), "float32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3)).astype(dtype)
    tower(pixels)
    w = randomise(tower.projection) | randomise(tower.head)
    x = ((pixels.astype(np.float64) - mean) / deviation).mean(axis=(1, 2))
    x = x @ w["image/projection/kernel"] + w["image/projection/bias"]
    expected = tower.head(tf.constant(x, tf.float32))
    np.testing.assert_allclose(tower(pixels), expected, rtol=1e-5, atol=1e-5)


def test_image_tower_of_grey_pictures(monkeypatch):
    identity_backbone(monkeypatch, channels=1)
    tower = make_tower("ResNet-18", 1, None, "float32", channels=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 1)).astype(np.uint8)
    tower(pixels)
    tower.projection.set_weights([np.ones((1, 1)), np.zeros(1)])
    expected = ((pixels - 123.675) / 58.395).mean(axis=(1, 2))
    np.testing.assert_allclose(tower(pixels), expected, rtol=1e-5, atol=1e-5)


def test_image_tower_in_bfloat16_gives_float32(monkeypatch):
    """The vector is what the store keeps; the projection has float32 weights."""
    identity_backbone(monkeypatch)
    tower = make_tower("ResNet-18", 4, None, "mixed_bfloat16")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 3)).astype(np.uint8)
    vector = tower(pixels)
    assert vector.dtype == tf.float32
    assert {v.dtype for v in tower.variables} == {"float32"}
    wide = make_tower("ResNet-18", 4, None, "float32")
    wide(pixels)
    wide.set_weights(tower.get_weights())
    np.testing.assert_allclose(vector, wide(pixels), rtol=0.05, atol=0.05)
