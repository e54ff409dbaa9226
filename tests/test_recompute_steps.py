"""A step with recompute and in_micro_batches against the plain one: the same gradients, state and training."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from recompute_helpers import NUM_PICTURES, PICTURES, SIDE

from easyrec_mm.network.layers.fast_layers import with_fast_layers
from easyrec_mm.network.layers.recompute import in_micro_batches, recompute


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
    return lambda model, x: tf.concat([plain(model, x[i : i + size]) for i in range(0, NUM_PICTURES, size)], axis=0)


@functools.cache
def step(call, num_pictures=NUM_PICTURES, **settings):
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


@pytest.mark.parametrize("size", [1, 3, 5, NUM_PICTURES, NUM_PICTURES + 6])
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
