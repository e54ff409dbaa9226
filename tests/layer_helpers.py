"""Random arrays and weights for tests of layers."""

import numpy as np


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
