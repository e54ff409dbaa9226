"""The fusions of picture and text, against their formulas in NumPy."""

import math

import numpy as np
import pytest
import tensorflow as tf

from easyrec_mm.network.layers.item_fusion import AttentionFusion, BilinearFusion, GatedFusion, ItemFusion, QueryFusion

PARTS, WIDTHS = ("image", "text"), (3, 5)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(4, width)).astype(np.float32) for width in WIDTHS]


def weights_by_name(layer, vectors):
    """Weights, changed at random, by the end of their path, after a first call."""
    layer([tf.constant(v) for v in vectors])
    rng = np.random.default_rng(1)
    for variable in layer.variables:
        variable.assign(rng.normal(size=variable.shape).astype(np.float32))
    return {variable.path.removeprefix("fusion/"): variable.numpy() for variable in layer.variables}


def dense(weights, name, x):
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def softmax(x, axis):
    shifted = np.exp(x - x.max(axis, keepdims=True))
    return shifted / shifted.sum(axis, keepdims=True)


def assert_gives(layer, vectors, expected):
    result = layer([tf.constant(v) for v in vectors]).numpy()
    assert result.shape == (4, layer.width)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_concat(vectors):
    assert_gives(ItemFusion(PARTS, WIDTHS), vectors, np.concatenate(vectors, 1))


def test_gated(vectors):
    layer = GatedFusion(PARTS, WIDTHS, 6)
    weights = weights_by_name(layer, vectors)
    values = [np.tanh(dense(weights, f"{part}_projection", v)) for part, v in zip(PARTS, vectors, strict=True)]
    gates = softmax(dense(weights, "gate", np.concatenate(vectors, 1)).reshape(4, 2, 6), 1)
    assert_gives(layer, vectors, (np.stack(values, 1) * gates).sum(1))
    shares = layer.weights_of([tf.constant(v) for v in vectors])
    np.testing.assert_allclose([shares[part] for part in PARTS], gates.mean((0, 2)), rtol=1e-5)


def test_attention(vectors):
    layer = AttentionFusion(PARTS, WIDTHS, 6)
    weights = weights_by_name(layer, vectors)
    values = [np.tanh(dense(weights, f"{part}_projection", v)) for part, v in zip(PARTS, vectors, strict=True)]
    hidden = np.tanh(dense(weights, "attention_hidden", np.concatenate(vectors, 1)))
    shares = softmax(dense(weights, "attention_score", hidden), 1)
    assert_gives(layer, vectors, (np.stack(values, 1) * shares[:, :, None]).sum(1))
    by_part = layer.weights_of([tf.constant(v) for v in vectors])
    np.testing.assert_allclose([by_part[part] for part in PARTS], shares.mean(0), rtol=1e-5)


def test_queries(vectors):
    layer = QueryFusion(PARTS, WIDTHS, num_queries=2, dim=6, num_heads=3)
    weights = weights_by_name(layer, vectors)
    keys, values = (
        np.stack([dense(weights, f"{part}_{kind}", v) for part, v in zip(PARTS, vectors, strict=True)], 1)
        for kind in ("key", "value")
    )
    queries = weights["queries"]
    expected = []
    for item in range(4):
        heads = []
        for head in range(3):
            place = slice(2 * head, 2 * head + 2)
            attention = softmax(queries[:, place] @ keys[item][:, place].T / np.sqrt(2), 1)
            heads.append(attention @ values[item][:, place])
        x = queries + dense(weights, "output", np.concatenate(heads, 1))
        inner = dense(weights, "hidden", x)
        gelu = 0.5 * inner * (1 + np.vectorize(math.erf)(inner / np.sqrt(2)))
        expected.append((x + dense(weights, "dense", gelu)).reshape(-1))
    assert_gives(layer, vectors, np.stack(expected))
    assert sum(float(w) for w in layer.weights_of([tf.constant(v) for v in vectors]).values()) == pytest.approx(
        1, rel=1e-5
    )


def test_bilinear(vectors):
    layer = BilinearFusion(PARTS, WIDTHS, dim=6, rank=4)
    weights = weights_by_name(layer, vectors)
    factors = [np.tanh(dense(weights, f"{part}_factor", v)) for part, v in zip(PARTS, vectors, strict=True)]
    projected = [dense(weights, f"{part}_projection", v) for part, v in zip(PARTS, vectors, strict=True)]
    assert_gives(layer, vectors, sum(projected) + dense(weights, "product", factors[0] * factors[1]))
    assert layer.weights_of([tf.constant(v) for v in vectors]) == {}
