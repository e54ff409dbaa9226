"""recompute and in_micro_batches need less memory than the plain call."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from layer_helpers import random

from easyrec_mm.network.layers.recompute import in_micro_batches, recompute

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


@pytest.mark.slow
def test_memory():
    """6 parts of 4 layers keep 6 inputs and the outputs of 4, not of 24; slices keep those of a quarter of the rows."""
    names = ["in_turn", "recomputed_in_turn", "sliced_in_turn", "sliced_recomputed_in_turn"]
    calls = "; ".join(f"t.print_memory(t.{name})" for name in names)
    # TensorFlow counts memory of the CPU only with oneDNN, which it takes by itself on some processors alone.
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", f"import test_recompute_memory as t; {calls}"]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    whole, *others = [int(line) for line in output.split()]
    assert whole > NUM_LAYERS * ROWS * WIDTH * 4  # the outputs of all layers, in bytes
    for peak, factor in zip(others, (1.7, 2.5, 4), strict=True):
        assert peak < whole / factor
