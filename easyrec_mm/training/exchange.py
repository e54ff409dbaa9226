"""What replicas exchange in a step: sums of gradients, rows of tables, and moving statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import shard_of
from easyrec_mm.training.row_gradients import Gradient, sum_duplicate_rows

# Statistics that batch normalisation keeps, by the ends of their names.
_MOVING = ("/moving_mean", "/moving_variance")


class StepExchange:
    """Makes the gradients and statistics of a step the same on all replicas; does nothing for a single one.

    Args:
      replicas: the replicas.
      named: variables of the model by name.
    """

    def __init__(self, replicas: Replicas, named: Mapping[str, keras.Variable]) -> None:
        self._replicas = replicas
        self._moving = {name: v.value for name, v in named.items() if name.endswith(_MOVING)}
        self._are_tables_divided = any(shard_of(v.value) is not None for v in named.values())

    def merged(
        self, gradients: Sequence[Gradient], variables: Sequence[tf.Variable], scalars: Sequence[tf.Tensor]
    ) -> tuple[list[Gradient], list[tf.Tensor]]:
        """Return the sums of the replicas' gradients of variables, and of scalars.

        Of tables, they are sums of the rows that a replica has. The gradient of a part of a table is that of all
        replicas already (DividedTables).
        """
        if self._replicas.num == 1:
            return list(gradients), list(scalars)
        merged = list(gradients)
        dense = [i for i, gradient in enumerate(gradients) if isinstance(gradient, tf.Tensor)]
        sums = self._replicas.sum_each([*scalars, *(gradients[i] for i in dense)])
        for i, gradient in zip(dense, sums[len(scalars) :], strict=True):
            merged[i] = gradient
        for i, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            if isinstance(gradient, tf.IndexedSlices) and shard_of(variable) is None:
                rows = self._replicas.gather(gradient.indices, is_sparse=True)
                values = self._replicas.gather(gradient.values, is_sparse=True)
                merged[i] = tf.IndexedSlices(values, rows, gradient.dense_shape)
        return sum_duplicate_rows(merged), sums[: len(scalars)]

    def norm(self, gradients: Sequence[Gradient], variables: Sequence[tf.Variable]) -> tf.Tensor:
        """Return the common norm of merged gradients, with those of all parts of tables."""
        if not self._are_tables_divided:
            return tf.linalg.global_norm(gradients)
        of_parts, of_others = tf.constant(0.0), tf.constant(0.0)
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is None:
                continue
            squares = tf.reduce_sum(tf.square(gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient))
            if shard_of(variable) is None:
                of_others += squares
            else:
                of_parts += squares
        return tf.sqrt(self._replicas.sum(of_parts) + of_others)

    def on_all(self, flag: tf.Tensor) -> tf.Tensor:
        """Return whether a flag is set on all replicas; it differs between them only if they hold parts of tables."""
        if not self._are_tables_divided:
            return flag
        return self._replicas.sum(tf.cast(flag, tf.float32)) == self._replicas.num

    def average_statistics(self, num_samples: tf.Tensor, num_pictures: tf.Tensor) -> None:
        """Give all replicas the same moving statistics: the mean of theirs, weighted by what they normalised."""
        if self._replicas.num == 1:
            return
        numbers = tf.cast(tf.stack([num_samples, num_pictures]), tf.float32)
        places = [int(name.startswith("image/")) for name in self._moving]
        # A replica without samples or pictures has no statistics of them.
        weighted = [
            tf.math.multiply_no_nan(tf.convert_to_tensor(variable), numbers[place])
            for variable, place in zip(self._moving.values(), places, strict=True)
        ]
        *sums, totals = self._replicas.sum_each([*weighted, numbers])
        for variable, value, place in zip(self._moving.values(), sums, places, strict=True):
            variable.assign(tf.where(totals[place] > 0, value / totals[place], variable))
