"""Pictures and a step of any function, for tests of recompute and in_micro_batches."""

import numpy as np
import tensorflow as tf

NUM_PICTURES, SIDE = 10, 8
PICTURES = np.random.default_rng(0).integers(0, 256, (NUM_PICTURES, SIDE, SIDE, 3), np.uint8)


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
