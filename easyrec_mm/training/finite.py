"""Finds within the graph of a step whether its numbers are finite, and takes back what a useless step has changed.

The forward pass itself changes variables: moving statistics of batch norm, states of random numbers, and the picture
bank. They are read before it, so that a step that is not finite leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

from easyrec_mm.data.picture_bank import PictureBank

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None


def are_finite(values: Iterable[Gradient]) -> tf.Tensor:
    """Return whether all numbers of gradients, of tables only those of their rows, and of other tensors are finite."""
    tensors = [value.values if isinstance(value, tf.IndexedSlices) else value for value in values if value is not None]
    # A sum of squares reads each number once and writes none. Only if it overflows is each number looked at.
    squares = tf.add_n([tf.nn.l2_loss(tensor) for tensor in tensors])

    def one_by_one() -> tf.Tensor:
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])

    return tf.cond(tf.math.is_finite(squares), lambda: tf.constant(True), one_by_one)


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

    def statistics(self) -> Sequence[tf.Tensor]:
        """Return the present values of the moving statistics."""
        return [tf.convert_to_tensor(v) for v in self._variables.values() if v.dtype.is_floating]

    def restore(self) -> None:
        """Give the variables their earlier values."""
        for name, value in self._before.items():
            self._variables[name].assign(value)


def forget_useless(bank: PictureBank, rows: tf.Tensor) -> None:
    """Overwrite, among these rows of a bank, those with a number that is not finite by zeros."""
    vectors = tf.gather(bank.vectors, rows)
    is_finite = tf.reduce_all(tf.math.is_finite(vectors), axis=1, keepdims=True)
    bank.vectors.scatter_update(tf.IndexedSlices(tf.where(is_finite, vectors, 0.0), rows))
