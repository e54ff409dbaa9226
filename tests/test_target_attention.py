"""Target attention against NumPy in float64, its gradients, and where histories are empty or padded."""

from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import random

from easyrec_mm.network.layers.dnn import DNN
from easyrec_mm.network.layers.target_attention import TargetAttention

LENGTHS = [3, 0, 1, 4, 0]
WIDTH = 3


def make(units=(5, 1), use_bn=True, dtype=None, seed=2):
    """A layer with random weights, and their values."""
    layer = TargetAttention(
        DNN(units, activation="tanh", use_bn=use_bn, name="dnn", dtype=dtype, ends_linear=True), "a"
    )
    layer(*batch())
    rng = np.random.default_rng(seed)
    values = {}
    for v in layer.weights:
        low = 0.5 if "variance" in v.name or "gamma" in v.name else -1.0
        v.assign(rng.uniform(low, 1.5, v.shape))
        values[v.path.removeprefix("a/dnn/")] = v.numpy().astype(np.float64)
    return layer, values


def batch(lengths=LENGTHS):
    key = tf.constant(random(len(lengths), WIDTH))
    history = tf.RaggedTensor.from_row_lengths(random(sum(lengths), WIDTH, seed=1), lengths)
    return key, history


def reference(key, elements, w, use_bn=True):
    """One sample: `[K]`, `[L, K]` -> `[K]`."""
    if not len(elements):
        return np.zeros(WIDTH)
    keys = np.repeat(key[None], len(elements), axis=0)
    x = np.concatenate([keys, elements, keys - elements, keys * elements], axis=1).astype(np.float64)
    x = x @ w["dense_0/kernel"] + w["dense_0/bias"]
    if use_bn:
        x = (x - w["bn_0/moving_mean"]) / np.sqrt(w["bn_0/moving_variance"] + 1e-3) * w["bn_0/gamma"] + w["bn_0/beta"]
    scores = (np.tanh(x) @ w["dense_1/kernel"] + w["dense_1/bias"])[:, 0]
    weights = np.exp(scores - scores.max())
    return (weights / weights.sum()) @ elements


def expected(key, history, w, use_bn=True):
    return [reference(k, e, w, use_bn) for k, e in zip(key.numpy(), ragged_rows(history), strict=True)]


def ragged_rows(history):
    splits = history.row_splits.numpy()
    return [history.flat_values.numpy()[start:end] for start, end in pairwise(splits)]


@pytest.mark.parametrize("use_bn", [False, True])
def test_attention(use_bn):
    layer, w = make(use_bn=use_bn)
    key, history = batch()
    assert {name.split("/")[0] for name in w} == ({"dense_0", "bn_0", "dense_1"} if use_bn else {"dense_0", "dense_1"})
    np.testing.assert_allclose(layer(key, history), expected(key, history, w, use_bn), rtol=1e-5, atol=1e-6)


def test_padded_histories_give_the_same():
    layer, w = make()
    key, history = batch()
    padded = history.to_tensor(default_value=9.0, shape=[None, 6, WIDTH])
    is_there = tf.cast(tf.sequence_mask(LENGTHS, 6), tf.float32)
    output = tf.function(layer.padded)(key, padded, is_there)
    np.testing.assert_allclose(output, expected(key, history, w), rtol=1e-5, atol=1e-6)


def test_scores_of_any_size_are_no_overflow():
    layer, w = make(use_bn=False)
    kernel = next(v for v in layer.weights if v.path.endswith("dense_1/kernel"))
    kernel.assign(kernel * 1e4)
    w["dense_1/kernel"] = w["dense_1/kernel"] * 1e4
    key, history = batch()
    np.testing.assert_allclose(layer(key, history), expected(key, history, w, False), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_each_sample_alone():
    """And an empty history has none, not even of its key."""
    layer, _ = make(use_bn=False)
    key, history = batch()
    upstream = random(*key.shape, seed=5)

    def gradients(rows):
        sample_keys, histories = tf.gather(key, rows), tf.gather(history, rows)
        elements = histories.flat_values
        with tf.GradientTape() as tape:
            tape.watch([sample_keys, elements])
            output = layer(sample_keys, histories.with_flat_values(elements), training=True)
            loss = tf.reduce_sum(output * tf.gather(upstream, rows))
        variables = [v.value for v in layer.trainable_weights]
        derivatives = tape.gradient(loss, [sample_keys, elements, *variables], unconnected_gradients="zero")
        return [tf.convert_to_tensor(gradient).numpy() for gradient in derivatives]

    of_key, of_elements, *of_weights = gradients(list(range(5)))
    alone = [gradients([i]) for i in range(5)]
    np.testing.assert_allclose(of_key, np.concatenate([g[0] for g in alone]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_elements, np.concatenate([g[1] for g in alone]), rtol=1e-4, atol=1e-6)
    for i, gradient in enumerate(of_weights):
        np.testing.assert_allclose(gradient, sum(g[2 + i] for g in alone), rtol=1e-4, atol=1e-5)
    assert np.count_nonzero(of_key[1]) == np.count_nonzero(of_key[4]) == 0
    assert np.count_nonzero(of_key[0]) == WIDTH
    assert not any(np.count_nonzero(gradient) for gradient in alone[1])


def test_batch_norm_sees_elements_not_padding_and_survives_a_batch_without_any():
    layer, w = make()
    key, history = batch()
    step = tf.function(lambda k, h: layer(k, h, training=True))
    keys = np.repeat(key.numpy(), LENGTHS, axis=0)
    elements = history.flat_values.numpy()
    x = np.concatenate([keys, elements, keys - elements, keys * elements], axis=1) @ w["dense_0/kernel"]
    x += w["dense_0/bias"]
    step(key, history)
    averages = {v.path.removeprefix("a/dnn/bn_0/"): v.numpy() for v in layer.weights if "moving" in v.path}
    np.testing.assert_allclose(averages["moving_mean"], 0.99 * w["bn_0/moving_mean"] + 0.01 * x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(
        averages["moving_variance"], 0.99 * w["bn_0/moving_variance"] + 0.01 * x.var(0), rtol=1e-4
    )
    nothing = step(*batch([0, 0]))
    np.testing.assert_array_equal(nothing, np.zeros((2, WIDTH)))
    for v in layer.weights:
        if "moving" in v.path:
            np.testing.assert_array_equal(v.numpy(), averages[v.path.removeprefix("a/dnn/bn_0/")])


def test_in_bfloat16_weights_and_result_are_float32():
    layer, _ = make(dtype="mixed_bfloat16")
    wide, _ = make()
    output, exact = layer(*batch()), wide(*batch())
    assert output.dtype == tf.float32
    np.testing.assert_allclose(output, exact, rtol=0.1, atol=0.1)
