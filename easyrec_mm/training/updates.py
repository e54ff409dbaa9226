"""The update at the end of a step: optimizers and moving average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from easyrec_mm.runs.moving_average import MovingAverage
from easyrec_mm.training.optimizers import RowOptimizer
from easyrec_mm.training.plan import Phase
from easyrec_mm.training.row_gradients import Gradient


class Updates:
    """Changes the variables by their gradients.

    Args:
      optimizers: each with the names of the variables that it updates.
      trained: variables of all phases by name.
      average: moving average of the weights; None if it is not used.
    """

    def __init__(
        self,
        optimizers: Sequence[tuple[RowOptimizer, list[str]]],
        trained: Mapping[str, keras.Variable],
        average: MovingAverage | None,
    ) -> None:
        self._optimizers, self._trained, self._average = optimizers, trained, average

    def apply(self, phase: Phase, stacked: Mapping[str, Gradient], step: tf.Tensor) -> None:
        """Apply the gradients of a step, by the names of `phase.gradients`; `step` is its number, from 1."""
        gradients = phase.gradients.by_variable(stacked)

        def update() -> None:
            for optimizer, names in self._optimizers:
                used = [name for name in names if gradients.get(name) is not None]
                if used:
                    optimizer.apply([gradients[name] for name in used], [self._trained[name] for name in used])
                else:
                    # The learning rate follows the steps of the training, even before the variables are unfrozen.
                    optimizer.iterations.assign_add(1)

        if self._average is None:
            update()
            return
        rows = {name: g.indices for name, g in gradients.items() if isinstance(g, tf.IndexedSlices)}
        self._average.around(update, rows, step)

    def function(
        self, phase: Phase, step: tf.types.experimental.PolymorphicFunction, number: tf.Variable
    ) -> tf.types.experimental.PolymorphicFunction:
        """Return `apply` as a function of the gradients that are the last result of `step`, which has a signature.

        Within the condition on which the update depends, each variable and each of its slots would take three
        operations more in the graph of the step. For many of them this is worth that gradients pass through Python,
        which takes 20 microseconds for each.
        """
        gradients = step.get_concrete_function().structured_outputs[-1]
        specs = {name: tf.type_spec_from_value(gradient) for name, gradient in gradients.items()}
        return tf.function(
            lambda given: self.apply(phase, given, tf.cast(number, tf.int32)), input_signature=[specs], autograph=False
        )
