"""recompute and in_micro_batches against the plain call: the same values and gradients, whatever is called."""

from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import random
from recompute_helpers import PICTURES, gradient_step

from easyrec_mm.network.layers.recompute import in_micro_batches, recompute

WAYS = {"recompute": recompute, "micro-batches": lambda function, *inputs: in_micro_batches(function, 2, *inputs)}
both_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@both_ways
def test_inputs_of_several_types(way):
    """Pixels have no gradient, embeddings one, an unused input or variable None."""
    weight, unused = tf.Variable(random(3, 4)), tf.Variable(random(2))
    inputs = PICTURES[:5, 0, 0], random(5, 4, seed=1), random(5, 2, seed=2)

    def function(pixels, embeddings, _):
        return tf.matmul(tf.cast(pixels, tf.float32) / 255, weight) * tf.tanh(embeddings)

    [output], gradients = gradient_step(lambda *x: way(function, *x), inputs, [weight, unused])
    pixels, tanh = inputs[0].astype(np.float64) / 255, np.tanh(inputs[1].astype(np.float64))
    product = pixels @ weight.numpy().astype(np.float64)
    np.testing.assert_allclose(output, product * tanh, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients[0], pixels.T @ (2 * product * tanh**2), rtol=1e-5)
    np.testing.assert_allclose(gradients[2], 2 * product**2 * tanh * (1 - tanh**2), rtol=1e-5, atol=1e-6)
    assert gradients[1] is None
    assert gradients[3] is None


@both_ways
def test_gathered_output(way):
    """The gradient that comes back is tf.IndexedSlices, as where samples share a picture."""
    weight, x = tf.Variable(random(3, 4)), random(5, 3, seed=1)
    rows = np.array([4, 0, 0, 2, 4, 4])

    def function(x):
        return tf.tanh(tf.matmul(x, weight))

    _, expected = gradient_step(lambda x: tf.gather(function(x), rows), [x], [weight])
    _, actual = gradient_step(lambda x: tf.gather(way(function, x), rows), [x], [weight])
    for gradient, value in zip(actual, expected, strict=True):
        np.testing.assert_allclose(gradient, value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_several_outputs(nested):
    """Of which the loss uses one; another is of integers."""
    weight, x = tf.Variable(random(3, 4)), random(5, 3, seed=1)

    def function(x):
        y = tf.matmul(x, weight)
        return {"a": tf.tanh(y), "b": tf.argmax(y, axis=1), "c": tf.exp(y)}

    def twice(x):
        return recompute(lambda x: recompute(function, x), x)

    outputs, expected = gradient_step(function, [x], [weight])
    actual = gradient_step(twice if nested else lambda x: recompute(function, x), [x], [weight])
    for value, other in zip([*actual[0], *actual[1]], [*outputs, *expected], strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-6)


def test_rows_of_a_table():
    """Recomputation leaves their gradient sparse."""
    table, ids = tf.Variable(random(6, 3)), np.array([5, 0, 0, 2], np.int64)
    _, [gradient] = gradient_step(lambda x: recompute(lambda x: tf.nn.embedding_lookup(table, x), x), [ids], [table])
    assert isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(gradient.indices, ids)
    np.testing.assert_allclose(gradient.values, 2 * table.numpy()[ids], rtol=1e-6)


def test_state_of_a_part_is_what_the_part_before_left():
    """Within a recomputed function: the second part reads, and the first writes, what the whole writes later again."""
    state = keras.Variable(0.0, trainable=False)

    def function(x):
        state.assign(1.0)
        x = recompute(lambda x: x * tf.convert_to_tensor(state), x)
        state.assign(5.0)
        x = recompute(lambda x: (state.assign(state * 2.0), x * tf.convert_to_tensor(state))[1], x)
        state.assign(state + 3.0)
        return x

    [output], [gradient] = gradient_step(lambda x: recompute(function, x), [np.float32([2.0])], [])
    assert float(output[0]) == 20.0
    assert float(gradient[0]) == 2 * 20.0 * 10.0
    assert float(state.numpy()) == 13.0


@both_ways
def test_within_a_layer(way):
    """The second run is as deep in training and in bfloat16 as the first, which takes both from the layer around."""

    class Outer(keras.layers.Layer):
        def __init__(self, way):
            super().__init__(dtype="mixed_bfloat16")
            self._way = way
            self._dropout = keras.layers.Dropout(0.5, seed=3, dtype="mixed_bfloat16")
            self.kernel = self.add_weight(shape=(3, 4), initializer=keras.initializers.Constant(random(3, 4)))

        def call(self, x):
            return self._way(lambda x: self._dropout(tf.matmul(x, tf.convert_to_tensor(self.kernel))), x)

    def run(way):
        layer = Outer(way)
        layer.build((2, 3))
        return gradient_step(lambda x: layer(x, training=True), [random(2, 3)], [layer.kernel.value])

    (outputs, gradients), (expected_outputs, expected) = run(way), run(lambda function, x: function(x))
    assert outputs[0].dtype == tf.bfloat16
    assert 0 < (expected_outputs[0] == 0).sum() < 8
    for value, other in zip([*outputs, *gradients], [*expected_outputs, *expected], strict=True):
        np.testing.assert_array_equal(value, other)


# What runs, and how often

RUNS: Counter = Counter()


def counted(name):
    """The identity, which counts how often it and its gradient run, and which TensorFlow leaves out if unused."""

    def count(key, x):
        def add(x):
            RUNS[key] += 1
            return x

        y = tf.numpy_function(add, [x], x.dtype, stateful=False)
        y.set_shape(x.shape)
        return y

    @tf.custom_gradient
    def identity(x):
        return count(name, x), lambda upstream: count(f"{name} gradient", upstream)

    return identity


def count_runs(way, watched):
    """Three layers over 5 rows of integers, and an average; what ran if the weights with these numbers are watched."""
    weights = [tf.Variable(random(4, 4, seed=i)) for i in range(3)]
    average = keras.Variable(0.0, trainable=False)

    def function(x):
        x = tf.cast(x, tf.float32)
        for i, weight in enumerate(weights):
            x = counted(f"layer {i}")(tf.tanh(tf.matmul(x, counted(f"weight {i}")(weight.value()))))
        average.assign(tf.reduce_mean(counted("average")(x)))
        return x

    RUNS.clear()
    _, gradients = gradient_step(lambda x: way(function, x), [np.ones((5, 4), np.int32)], [weights[i] for i in watched])
    assert all(np.any(gradient) for gradient in gradients)
    return dict(RUNS)


@pytest.mark.parametrize(("way", "num_slices"), [(recompute, 1), (WAYS["micro-batches"], 3)], ids=WAYS)
def test_the_second_run_is_one_and_only_for_what_is_watched(way, num_slices):
    runs = count_runs(way, [])
    assert runs == {
        "average": num_slices,
        **{f"{kind} {i}": num_slices for kind in ("layer", "weight") for i in range(3)},
    }
    runs = count_runs(way, [1])
    once, twice = num_slices, 2 * num_slices
    assert runs["layer 0"] == runs["weight 1"] == runs["weight 2"] == twice
    assert runs["weight 1 gradient"] == runs["layer 1 gradient"] == runs["layer 2 gradient"] == once
    assert not {"weight 0 gradient", "weight 2 gradient", "layer 0 gradient", "average gradient"} & set(runs)


# Errors


def reads_from_outside(x):
    y = 2 * x
    return recompute(lambda x: x + y, x)


def adds_losses(x):
    layer = keras.layers.Dense(2, activity_regularizer=keras.regularizers.L2(0.1))
    layer.build((None, 3))
    return recompute(layer, x)


TABLE = tf.Variable(random(6, 2))
ERRORS = {
    "outside": (reads_from_outside, "reads_from_outside.*reads a float tensor from outside.*make it an input"),
    "losses": (adds_losses, "Dense.*adds losses"),
    "size": (lambda x: in_micro_batches(tf.tanh, 0, x), "in_micro_batches: size is 0"),
    "shape": (
        lambda x: in_micro_batches(lambda x: x[:, : tf.shape(x)[0]], 2, x),
        r"in_micro_batches: the shape of a row, \(None,\), is not fully defined",
    ),
    "table": (
        lambda x: in_micro_batches(lambda x: tf.gather(TABLE, tf.cast(x[:, 0], tf.int32)), 2, x),
        "in_micro_batches: the function looks up rows of a table",
    ),
}


@pytest.mark.parametrize(("function", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(function, message):
    with pytest.raises(ValueError, match=message):
        gradient_step(function, [random(4, 3)], [TABLE])
