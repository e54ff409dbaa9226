"""What replicas exchange in a step: sums of gradients, rows of tables, and moving statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas
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

    def merged(
        self, gradients: Sequence[Gradient], scalars: Sequence[tf.Tensor]
    ) -> tuple[list[Gradient], list[tf.Tensor]]:
        """Return the sums of the replicas' gradients and scalars; of tables, only the rows that a replica has."""
        if self._replicas.num == 1:
            return list(gradients), list(scalars)
        merged = list(gradients)
        dense = [i for i, gradient in enumerate(gradients) if isinstance(gradient, tf.Tensor)]
        sums = self._replicas.sum_each([*scalars, *(gradients[i] for i in dense)])
        for i, gradient in zip(dense, sums[len(scalars) :], strict=True):
            merged[i] = gradient
        for i, gradient in enumerate(gradients):
            if isinstance(gradient, tf.IndexedSlices):
                rows = self._replicas.gather(gradient.indices, is_sparse=True)
                values = self._replicas.gather(gradient.values, is_sparse=True)
                merged[i] = tf.IndexedSlices(values, rows, gradient.dense_shape)
        return sum_duplicate_rows(merged), sums[: len(scalars)]

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
