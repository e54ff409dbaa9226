"""Finds within the graph of a step whether its numbers are finite, and takes back what a useless step has changed.

The forward pass itself changes variables: moving statistics of batch norm, states of random numbers, and the picture
bank. They are read before it, so that a step that is not finite leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import keras
import tensorflow as tf

from easyrec_mm.data.batch import Batch
from easyrec_mm.data.vector_bank import Banks, VectorBank
from easyrec_mm.training.row_gradients import Gradient


def squares_are_finite(gradients: Iterable[Gradient]) -> tf.Tensor:
    """Return whether the sum of the squares of gradients, those of tables included, is finite.

    Optimizers square gradients: one whose square overflows would make what they keep infinite.
    """
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients if g is not None]
    # This reads each number once and writes none.
    return tf.math.is_finite(tf.add_n([tf.nn.l2_loss(value) for value in values]))


class ForwardState:
    """The variables that a forward pass changes, as they were when this was created, within the graph of a step.

    Args:
      named: the variables of the model.
      trainable: names of those that only an optimizer changes.
    """

    def __init__(self, named: Mapping[str, keras.Variable], trainable: Iterable[str]) -> None:
        changed = set(named) - set(trainable)
        self._variables = {name: variable.value for name, variable in named.items() if name in changed}
        self._before = {name: tf.convert_to_tensor(variable) for name, variable in self._variables.items()}

    def is_finite(self) -> tf.Tensor:
        """Return whether the present values of the moving statistics are finite."""
        statistics = [tf.reshape(v, [-1]) for v in self._variables.values() if v.dtype.is_floating]
        return tf.reduce_all(tf.math.is_finite(tf.concat(statistics, 0))) if statistics else tf.constant(True)

    def restore(self) -> None:
        """Give the variables their earlier values."""
        for name, value in self._before.items():
            self._variables[name].assign(value)


def forget_useless(banks: Banks, batch: Batch) -> None:
    """Overwrite, among the vectors that a batch wrote to banks, those with a number that is not finite by zeros."""
    contents = batch.of_banks()
    for name, bank in banks.items():
        _forget_useless(bank, tf.gather(contents[name].bank_row, contents[name].encoded))


def _forget_useless(bank: VectorBank, rows: tf.Tensor) -> None:
    vectors = tf.gather(bank.vectors, rows)
    is_finite = tf.reduce_all(tf.math.is_finite(vectors), axis=1, keepdims=True)
    bank.vectors.scatter_update(tf.IndexedSlices(tf.where(is_finite, vectors, 0.0), rows))
