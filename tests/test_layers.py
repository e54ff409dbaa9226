"""Dense layers against NumPy float64."""

import numpy as np
import pytest
import tensorflow as tf
from layer_helpers import random, randomise, sigmoid

from easyrec_mm.network.layers.dnn import DNN, ExpertMixture, Highway


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
