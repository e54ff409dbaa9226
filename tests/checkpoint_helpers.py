"""Variables of every shape, for tests of checkpoints."""

import numpy as np
import tensorflow as tf

SHAPES = {"embedding/user": (50, 4), "rec/bias": (7,), "rec/kernel": (2, 3, 2), "scalar": (), "none": (0, 3)}


def variables(seed=0, shapes=SHAPES):
    """Random values under every name, and variables of other dtypes."""
    rng = np.random.default_rng(seed)
    return {name: tf.Variable(rng.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()} | {
        "step": tf.Variable(10**12 + seed, dtype=tf.int64),
        "last_used": tf.Variable(rng.integers(0, 99, 30), dtype=tf.int32),
        "narrow": tf.Variable(rng.normal(size=(9, 2)), dtype=tf.bfloat16),
    }


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, v in expected.items():
        np.testing.assert_array_equal(tf.convert_to_tensor(tensors[name]), tf.convert_to_tensor(v), err_msg=name)
