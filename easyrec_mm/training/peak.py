"""How many floating point operations per second this device can do: measured, because no table knows every device."""

from __future__ import annotations

import time
from functools import cache

import tensorflow as tf

_SMALLEST, _LARGEST = 256, 8192
_REPETITIONS = 3
# A product that takes this long is large enough to occupy the device.
_LONG_ENOUGH_S = 0.02


@cache
def peak_flops(dtype: str) -> float:
    """Return the floating point operations per second of products of square matrices: the best of a few, cached.

    The matrices become larger until a product takes 20 ms, so that this takes a fraction of a second on any device.
    """
    best, size = 0.0, _SMALLEST
    while True:
        matrix = tf.cast(tf.fill([size, size], 1e-3), dtype)
        shortest_s = min(_seconds(matrix) for _ in range(1 + _REPETITIONS))
        best = max(best, 2 * size**3 / shortest_s)
        if shortest_s > _LONG_ENOUGH_S or size >= _LARGEST:
            return best
        size *= 2


def _seconds(matrix: tf.Tensor) -> float:
    """Return how long a product takes; reading a number of it waits for the device."""
    started_s = time.perf_counter()
    tf.cast(tf.matmul(matrix, matrix)[0, 0], tf.float32).numpy()
    return time.perf_counter() - started_s
