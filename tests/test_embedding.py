"""Embeddings of features of every kind against NumPy float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from feature_helpers import combo_feature, id_feature, id_sequence, raw_feature, raw_sequence, tag_feature
from layer_helpers import random

from easyrec_mm.features.feature import Table
from easyrec_mm.features.sequence_feature import SequenceFeature
from easyrec_mm.network.layers.dnn import DNN
from easyrec_mm.network.layers.embedding import EmbeddingTable, FeatureEmbedding, combine, feature_vector, table_ids
from easyrec_mm.network.layers.row_lookup import look_up_rows
from easyrec_mm.network.layers.target_attention import TargetAttention
from easyrec_mm.schema import IMAGE_KEY, Attention


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
    tensors = {
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
        tensors[name] = tensors[f"w_{name}"] = tf.ragged.constant(TAGS, tf.int64)
        tensors[f"w_{name}:weight"] = tf.ragged.constant(WEIGHTS, tf.float32)
    for name in ("mean", "sum", "max"):
        tensors[f"seen_{name}"] = tf.ragged.constant(TAGS, tf.int64)
    lengths = [len(tags) for tags in TAGS]
    for name, value in SEQUENCES.items():
        tensors[name] = tf.RaggedTensor.from_row_lengths(tf.constant(value), lengths)
    return tensors


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
    return np.array([pool(elements, axis=0) if len(elements) else np.zeros(vectors.shape[1]) for elements in samples])


def feature_columns(w):
    """Feature -> its columns `[5, width]`, of tables `w`."""
    inputs = {name: value.numpy() for name, value in values().items() if not isinstance(value, tf.RaggedTensor)}
    columns = {
        "user": w["user"][inputs["user"]],
        "cross": w["cross"][inputs["cross"]],
        "price": inputs["price"],
        "vector": inputs["vector"],
        "vector_table": inputs["vector_table"] @ w["vector_table"],
        "bucket": np.eye(4)[inputs["bucket"]],
        "bucket_table": w["bucket_table"][inputs["bucket_table"]],
        "friend": w["user"][inputs["friend"]],
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
    tensors = values()
    for f in FEATURES:
        if f.is_list:
            value = tensors[f.name]
            weights = tensors.get(f.weight_key, value.with_flat_values(tf.ones(value.flat_values.shape[0])))
            # One more than the longest: padding changes nothing.
            shape = [None, value.bounding_shape()[1] + 1]
            tensors[f.weight_key] = weights.to_tensor(shape=shape)
            tensors[f.name] = value.to_tensor(shape=[*shape, *value.shape[2:]])
    return tensors


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
    inputs = values()
    key = np.concatenate([w["user"][inputs["friend"]], image, w["user"][inputs["user"]]], axis=1)
    elements = w["tags"][np.concatenate(TAGS).astype(int)]
    history = np.concatenate([elements, SEQUENCES["numbers"], elements], axis=1)
    expected = attend(tf.constant(key), inputs["numbers"].with_flat_values(tf.constant(history)))
    joined = [w["user"][inputs["user"]], pooled(elements, "mean"), expected.numpy(), *([key] if joins_key else [])]
    np.testing.assert_allclose(output, np.concatenate(joined, axis=1), rtol=1e-5, atol=1e-6)
    of_tables = [w["user"][inputs["user"]], w["user"][inputs["friend"]], joined[1], elements, elements]
    assert float(squares) == pytest.approx(sum(np.sum(x**2) for x in of_tables), rel=1e-5)
    rows = layer.look_up({f.name: (f.table, table_ids(f, inputs[f.name])) for f in features if f.table})
    rows |= {f.name: None for f in features if not f.table}
    padded = padded_values()
    rows |= {
        f.name: tf.gather(w["tags"], padded[f.name]) for f in features if isinstance(f, SequenceFeature) and f.table
    }
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
            table = layer.tables[f.table].embeddings.value
            rows = table if f.multiplies_rows else tf.gather(table, padded[f.name])
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
        tape.watch(list(variables.values()))
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
            numbers = rows[tags, column]
            largest = np.flatnonzero(numbers == numbers.max())
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
    embeddings = EmbeddingTable(table("t", 977, 3)).embeddings.value
    lookup = tf.function(lambda ids: look_up_rows([(embeddings, ids)]), autograph=False)
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
