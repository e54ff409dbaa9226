"""recompute and in_micro_batches against the plain call: the same values, gradients and state, in less memory."""

import functools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from easyrec_mm.network.layers.fast_layers import with_fast_layers
from easyrec_mm.network.layers.recompute import in_micro_batches, recompute

P, SIDE = 10, 8
PICTURES = np.random.default_rng(0).integers(0, 256, (P, SIDE, SIDE, 3), np.uint8)


def network(batch_norm="fused", dropout=0.3, dtype="float32"):
    """Two convolutional blocks and their average `[P, SIDE, SIDE, 3]` -> `[P, 6]`, the same at each call."""
    keras.utils.set_random_seed(1)
    policy = keras.dtype_policies.DTypePolicy(dtype)
    x = inputs = keras.Input((SIDE, SIDE, 3))
    for i, filters in enumerate((5, 6)):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=not batch_norm, name=f"conv_{i}", dtype=policy)(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(momentum=0.8, name=f"bn_{i}", dtype=policy)(x)
        x = keras.layers.Activation("tanh", name=f"tanh_{i}", dtype=policy)(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=i, name=f"block_{i}", dtype=policy)(x)
        else:
            x = keras.layers.Identity(name=f"block_{i}", dtype=policy)(x)
    x = keras.layers.GlobalAveragePooling2D(dtype=policy)(x)
    model = keras.Model(inputs, x)
    return with_fast_layers(model, dtype) if batch_norm == "fused" else model


def halves(model):
    """The model as two, one after the other."""
    middle = model.get_layer("block_0").output
    return [keras.Model(model.input, middle), keras.Model(middle, model.output)]


def plain(model, x):
    return model(x, training=True)


def recomputed(model, x):
    return recompute(lambda x: model(x, training=True), x)


def recomputed_by_halves(model, x):
    for part in halves(model):
        x = recompute(lambda x, part=part: part(x, training=True), x)
    return x


def in_slices(size, call=plain):
    return lambda model, x: in_micro_batches(lambda x: call(model, x), size, x)


def by_plain_slices(size):
    return lambda model, x: tf.concat([plain(model, x[i : i + size]) for i in range(0, P, size)], axis=0)


@functools.cache
def step(call, num_pictures=P, **settings):
    """Output, gradients (of the pictures and every weight) and state after one step, with an open P."""
    model = network(**settings)
    weights = {v.path: v.value for v in model.trainable_variables}

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, SIDE, SIDE, 3])])
    def run(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x, weights])
            output = tf.cast(call(model, tf.cast(x / 255, model.compute_dtype)), tf.float32)
            # Of another weight for each row and each column, or batch norm would leave no gradient.
            loss = tf.reduce_sum(
                tf.square(output) * tf.range(1.0, 7.0) / tf.range(1.0, 1 + tf.shape(output)[0])[:, None]
            )
        return output, tape.gradient(loss, {"pictures": x, **weights})

    output, gradients = run(PICTURES[:num_pictures].astype(np.float32))
    state = {f"{i} {v.name}": v.numpy() for i, v in enumerate(model.non_trainable_variables)}
    return {"output": output.numpy(), **{name: g.numpy() for name, g in gradients.items()}}, state


def assert_same(actual, expected, rtol=1e-6):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max(initial=0)
        np.testing.assert_allclose(actual[name], value, rtol=rtol, atol=rtol * scale, err_msg=name)


def assert_same_step(actual, expected, rtol=1e-6):
    """Values, gradients, averages of batch norm; and random states exactly."""
    (values, state), (expected_values, expected_state) = actual, expected
    assert_same(values, expected_values, rtol)
    assert_same(state, expected_state, rtol)
    for name, value in expected_state.items():
        if "seed" in name:
            np.testing.assert_array_equal(state[name], value)


# The same step


STEPS = {
    "whole": (recomputed, {}),
    "halves": (recomputed_by_halves, {}),
    "keras": (recomputed_by_halves, {"batch_norm": "keras"}),
    "bfloat16": (recomputed_by_halves, {"dtype": "mixed_bfloat16"}),
}


@pytest.mark.parametrize(("call", "settings"), STEPS.values(), ids=STEPS)
def test_recomputed_step_is_the_plain_one(call, settings):
    """Batch norm's averages move once, and the second run drops what the first one dropped."""
    expected = step(plain, **settings)
    assert_same_step(step(call, **settings), expected)
    for value, initial in zip(expected[1].values(), network(**settings).non_trainable_variables, strict=True):
        assert (value != initial.numpy()).any()


@pytest.mark.parametrize("size", [1, 3, 5, P, P + 6])
def test_gradients_of_micro_batches_are_those_of_the_whole(size):
    settings = {"batch_norm": None, "dropout": 0.0}
    assert_same_step(step(in_slices(size), **settings), step(plain, **settings), rtol=2e-6)


MICRO_BATCHES = {
    "plain": (in_slices(4), "float32"),
    "bfloat16": (in_slices(4), "mixed_bfloat16"),
    "of parts": (in_slices(4, recomputed_by_halves), "float32"),
    "of parts in bfloat16": (in_slices(4, recomputed_by_halves), "mixed_bfloat16"),
    "recomputed": (lambda model, x: recompute(lambda x: in_slices(4)(model, x), x), "float32"),
}


@pytest.mark.parametrize(("call", "dtype"), MICRO_BATCHES.values(), ids=MICRO_BATCHES)
def test_micro_batches_are_slices_one_after_the_other(call, dtype):
    """With batch norm and dropout: each slice by its own statistics and random numbers, the averages in order."""
    rtol = 2e-6 if dtype == "float32" else 1e-2  # the plain slices' gradients are added in bfloat16
    assert_same_step(step(call, dtype=dtype), step(by_plain_slices(4), dtype=dtype), rtol)


def test_micro_batches_of_nothing():
    values, state = step(in_slices(4), 0)
    assert values["output"].shape == (0, 6)
    assert values["pictures"].shape == (0, SIDE, SIDE, 3)
    untouched = network()
    assert {name: v.shape for name, v in values.items() if "/" in name} == {
        v.path: tuple(v.shape) for v in untouched.trainable_variables
    }
    assert all((value == 0).all() for name, value in values.items() if "/" in name)
    for value, variable in zip(state.values(), untouched.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


@pytest.mark.parametrize(
    ("call", "reference"),
    [(recomputed_by_halves, plain), (in_slices(4, recomputed_by_halves), by_plain_slices(4))],
    ids=["recompute", "micro-batches"],
)
def test_training_goes_on_alike(call, reference):
    """Two steps of an optimizer in one tf.function, and that twice."""

    def train(call):
        model = network()
        weights = [v.value for v in model.trainable_variables]
        optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
        optimizer.build(model.trainable_variables)

        @tf.function(autograph=False)
        def two_steps(x):
            losses = []
            for _ in range(2):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(weights)
                    output = call(model, x)
                    losses.append(tf.reduce_sum(tf.square(output[1:] - output[:-1])))
                optimizer.apply(tape.gradient(losses[-1], weights), model.trainable_variables)
            return losses

        x = PICTURES.astype(np.float32) / 255
        losses = [float(loss) for _ in range(2) for loss in two_steps(x)]
        return {"losses": np.array(losses), **{str(i): v.numpy() for i, v in enumerate(model.variables)}}

    actual, expected = train(call), train(reference)
    assert len(set(expected["losses"])) == 4
    assert_same(actual, expected, rtol=1e-5)


# Inputs, outputs, variables


def gradient_step(function, inputs, variables):
    """Values and gradients of the variables and the float inputs, of the sum of squares of the (first) output."""

    @tf.function(autograph=False)
    def run(*inputs):
        sources = [*variables, *(x for x in inputs if x.dtype.is_floating)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs = function(*inputs)
            loss = tf.reduce_sum(tf.square(tf.nest.flatten(outputs)[0]))
        return outputs, tape.gradient(loss, sources)

    outputs, gradients = run(*(tf.constant(x) for x in inputs))
    return [np.asarray(y) for y in tf.nest.flatten(outputs)], gradients


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


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


# Memory

ROWS, WIDTH, NUM_LAYERS, NUM_PARTS = 32, 1 << 14, 24, 6


def layers_of(weights):
    def function(x):
        for weight in weights:
            x = tf.tanh(x * weight)
        return x

    return function


def in_turn(parts, x):
    for part in parts:
        x = layers_of(part)(x)
    return x


def recomputed_in_turn(parts, x):
    for part in parts:
        x = recompute(layers_of(part), x)
    return x


def sliced_in_turn(parts, x):
    return in_micro_batches(functools.partial(in_turn, parts), 8, x)


def sliced_recomputed_in_turn(parts, x):
    return in_micro_batches(functools.partial(recomputed_in_turn, parts), 8, x)


def print_memory(call):
    """Prints the most bytes that tensors take at a time during a step on a deep network, beyond those before it.

    TensorFlow's own count is exact, but leaves out tensors below 256 KiB.
    """
    weights = [tf.Variable(random(WIDTH, seed=i)) for i in range(NUM_LAYERS)]
    parts = [weights[i::NUM_PARTS] for i in range(NUM_PARTS)]

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            loss = tf.reduce_mean(call(parts, x))
        return tape.gradient(loss, weights)

    rows = tf.constant(random(ROWS, WIDTH))
    tf.config.experimental.reset_memory_stats("CPU:0")
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    run(rows)
    print(tf.config.experimental.get_memory_info("CPU:0")["peak"] - before)


def test_memory():
    """6 parts of 4 layers keep 6 inputs and the outputs of 4, not of 24; slices keep those of a quarter of the rows."""
    names = ["in_turn", "recomputed_in_turn", "sliced_in_turn", "sliced_recomputed_in_turn"]
    calls = "; ".join(f"t.print_memory(t.{name})" for name in names)
    # TensorFlow counts memory of the CPU only with oneDNN, which it takes by itself on some processors alone.
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", f"import test_recompute as t; {calls}"]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    whole, *others = [int(line) for line in output.split()]
    assert whole > NUM_LAYERS * ROWS * WIDTH * 4  # the outputs of all layers, in bytes
    for peak, factor in zip(others, (1.7, 2.5, 4), strict=True):
        assert peak < whole / factor


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
