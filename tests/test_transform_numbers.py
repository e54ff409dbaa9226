"""Numbers, scaled, in buckets and as logarithms, against NumPy and against EasyRec's feature columns."""

import numpy as np
import pytest
import tensorflow as tf
from config_helpers import FEATURE
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.python.feature_column import feature_column_v2
from transform_helpers import raw_feature, transform

from easyrec_mm.features.numpy_transform import NumpyTransform


def test_a_number_stays_as_it_is():
    values = [0.5, -3.0, 1e30]
    numbers = transform(raw_feature(), x=values)
    np.testing.assert_array_equal(numbers, np.float32(values)[:, None])
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(transform(raw_feature(), x=[3, -4]), [[3.0], [-4.0]])
    np.testing.assert_array_equal(transform(raw_feature(), x=["1.5", "", " 2e1"]), [[1.5], [0.0], [20.0]])


@pytest.mark.parametrize("separator", ["|", "||", " "])
def test_vectors(separator):
    feature = raw_feature(width=3, dim=3, separator=separator)
    texts = [separator.join(numbers) for numbers in (["1", "-2.5", "3e2"], [".5", "0", "7"])]
    np.testing.assert_array_equal(transform(feature, x=[*texts, ""]), [[1, -2.5, 300], [0.5, 0, 7], [0, 0, 0]])


def floats(low, high):
    """Without those below 1.2e-38, which TensorFlow takes for 0."""
    return st.floats(low, high, width=32, allow_subnormal=False)


@given(st.lists(floats(-(2**20), 2**20), min_size=1, max_size=5), floats(-1024, 1024), floats(2**-10, 1024))
@settings(max_examples=20, deadline=None)
def test_numbers_are_scaled_to_their_limits(values, low, extent):
    high = low + extent
    scaled = transform(raw_feature(min_value=low, max_value=high), x=values)
    expected = (np.float32(values) - np.float32(low)) / np.float32(high - low)
    np.testing.assert_allclose(scaled[:, 0], expected, rtol=1e-6, atol=2e-38)


def test_limits_become_0_and_1():
    scaled = transform(raw_feature(min_value=-1.0, max_value=3.0), x=[-1.0, 3.0, 1.0, 7.0])
    np.testing.assert_array_equal(scaled[:, 0], [0, 1, 0.5, 2])


@given(
    st.lists(floats(-100, 100), min_size=1, max_size=6, unique=True),
    st.lists(floats(-150, 150), min_size=1, max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_buckets_equal_searchsorted(boundaries, values):
    boundaries = sorted(boundaries)
    values = [*values, *boundaries]  # the limits themselves
    buckets = transform(raw_feature(boundaries=tuple(boundaries), width=len(boundaries) + 1), x=values)
    assert buckets.tolist() == np.searchsorted(np.float32(boundaries), np.float32(values), side="right").tolist()
    assert buckets.dtype == np.int64


def test_a_bucket_holds_its_lower_limit():
    buckets = transform(raw_feature(boundaries=(1.0, 2.5)), x=[0.0, 0.999, 1.0, 2.4, 2.5, 1e9, -1e9])
    assert buckets.tolist() == [0, 0, 1, 1, 2, 2, 0]


@given(st.lists(floats(-(2**100), 2**100), min_size=1, max_size=8), floats(-1024, 1024), floats(2**-10, 1024))
@settings(max_examples=40, deadline=None)
def test_log1p_before_and_after_scaling(values, low, extent):
    def log1p(x):
        return np.sign(x) * np.log1p(np.abs(x))

    numbers = np.float32(values)
    logarithms = transform(raw_feature(log1p="before"), x=values)
    np.testing.assert_allclose(logarithms[:, 0], log1p(numbers.astype(np.float64)), rtol=1e-7, atol=1e-45)
    assert logarithms.dtype == np.float32
    high = low + extent
    scaled = raw_feature(min_value=low, max_value=high, log1p="before")
    expected = (log1p(numbers.astype(np.float64)) - low) / (high - low)
    np.testing.assert_allclose(transform(scaled, x=values)[:, 0], expected, rtol=1e-3, atol=1e-3)
    scaled = raw_feature(min_value=low, max_value=high, log1p="after")
    expected = log1p((numbers.astype(np.float64) - low) / (high - low))
    np.testing.assert_allclose(transform(scaled, x=values)[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_log1p_of_counts_is_log1p():
    logarithms = transform(raw_feature(log1p="before"), x=[0, 1, 99, -1, -99])
    np.testing.assert_allclose(logarithms[:, 0], [0, np.log(2), np.log(100), -np.log(2), -np.log(100)], rtol=1e-7)


def test_boundaries_divide_what_log1p_made():
    limits = tuple(np.log1p([10.0, 100.0]).tolist())
    buckets = transform(raw_feature(boundaries=limits, log1p="before"), x=[0.0, 9.9, 10.1, 99.0, 101.0])
    assert buckets.tolist() == [0, 0, 1, 1, 2]
    vector = raw_feature(width=2, dim=2, separator=",", log1p="before")
    np.testing.assert_allclose(transform(vector, x=["3,-3", ""]), [[np.log(4), -np.log(4)], [0, 0]], rtol=1e-7)


def test_buckets_of_text_integers_and_scaled_numbers():
    assert transform(raw_feature(boundaries=(0.0, 2.0)), x=["", "-1", "2"]).tolist() == [1, 0, 2]
    assert transform(raw_feature(boundaries=(0.0, 2.0)), x=[-5, 0, 1, 2]).tolist() == [0, 1, 1, 2]
    scaled = raw_feature(boundaries=(0.5,), min_value=0.0, max_value=10.0)
    assert transform(scaled, x=[4.9, 5.0]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("num_buckets", "low", "high"), [(2, 0.0, 1.0), (4, -1.0, 3.0), (10, 0.0, 1000.0), (7, 5.5, 5.75)]
)
def test_buckets_of_equal_width_are_those_of_easyrec(load, num_buckets, low, high):
    """EasyRec gives the scaled number to a bucketized_column with the boundaries i / num_buckets, from 0 on."""
    settings_text = f"num_buckets: {num_buckets} min_val: {low} max_val: {high} embedding_dim: 4"
    number = f'input_names: "fans_num" feature_type: RawFeature {settings_text}'
    schema = load(overrides=[f"{FEATURE['fans_num']}={number}"]).schema
    feature = next(feature for feature in schema.features if feature.name == "fans_num")
    values = np.concatenate([np.linspace(low - 1, high + 1, 500), [low, high, (low + high) / 2]]).astype(np.float32)

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        scaled = (tf.constant(values)[:, None] - low) / (high - low)
        boundaries = [i / float(num_buckets) for i in range(num_buckets)]
        column = feature_column_v2.bucketized_column(feature_column_v2.numeric_column("x"), boundaries)
        cache = feature_column_v2.FeatureTransformationCache({"x": scaled})
        expected = session.run(column.get_sparse_tensors(cache, None).id_tensor.values)
    assert feature.num_rows == column.num_buckets == num_buckets + 1
    assert transform(feature, fans_num=values.tolist()).tolist() == expected.tolist()
    in_numpy = NumpyTransform([feature])({"fans_num": values}, len(values))
    assert in_numpy["fans_num"].tolist() == expected.tolist()


def test_elements_of_sequences_and_expressions_have_such_buckets_too(load):
    common = "num_buckets: 4 min_val: 0 max_val: 8 embedding_dim: 2"
    sequence = f'input_names: "city" feature_type: SequenceFeature sub_feature_type: RawFeature separator: "," {common}'
    expression = f'input_names: "fans_num" feature_type: ExprFeature expression: "fans_num * 2" {common}'
    changes = {"city": sequence, "fans_num": expression}
    schema = load(overrides=[f"{FEATURE[name]}={text}" for name, text in changes.items()]).schema
    features = {feature.name: feature for feature in schema.features}
    lists = transform(features["city"], city=["-1,0,1.9,2", "8,7.9", ""])
    assert lists == [[0, 1, 1, 2], [4, 4], []]
    assert transform(features["fans_num"], fans_num=[-0.5, 0.0, 1.0, 3.9, 9.0]).tolist() == [0, 1, 2, 4, 4]
