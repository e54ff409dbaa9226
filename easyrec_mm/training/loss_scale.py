"""Dynamic loss scaling, which keeps gradients in the range of float16 (Micikevicius et al., ICLR 2018, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from easyrec_mm.training.row_gradients import Gradient

FIRST, SMALLEST, LARGEST = 2.0**15, 1.0, 2.0**24
# Steps without an overflow after which the scale is doubled.
STEPS_BEFORE_GROWTH = 2000


class LossScale:
    """The factor by which a loss is multiplied before its gradient is computed.

    If a gradient overflows, the step changes nothing and the factor is halved; after 2000 good steps it is doubled.
    """

    def __init__(self) -> None:
        self.value = tf.Variable(FIRST, trainable=False)
        self._good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)

    def named_variables(self) -> dict[str, tf.Variable]:
        """Return the variables that a checkpoint keeps, by name."""
        return {"progress/loss_scale": self.value, "progress/steps_since_overflow": self._good_steps}

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """Return the scaled loss, whose gradient is to be computed."""
        return loss * self.value

    def unscaled(self, gradients: Sequence[Gradient]) -> list[Gradient]:
        """Return the gradients of the loss itself, computed from those of the scaled loss."""
        factor = 1.0 / self.value

        def unscale(gradient: Gradient) -> Gradient:
            if isinstance(gradient, tf.IndexedSlices):
                return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
            return None if gradient is None else gradient * factor

        return [unscale(gradient) for gradient in gradients]

    def apply_if_finite(
        self,
        gradients: Sequence[Gradient],
        update: Callable[[], None],
        on_all: Callable[[tf.Tensor], tf.Tensor] = lambda is_finite: is_finite,
    ) -> None:
        """Run `update` unless a gradient is infinite or NaN, and adapt the scale.

        Args:
          gradients: the gradients.
          update: applies them.
          on_all: whether they are finite on this replica -> whether they are on all.
        """
        values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients if g is not None]
        is_finite = on_all(tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values]))

        def good() -> tf.Tensor:
            update()
            steps = self._good_steps.assign_add(1)
            grows = steps >= STEPS_BEFORE_GROWTH
            self.value.assign(tf.where(grows, tf.minimum(2.0 * self.value, LARGEST), self.value))
            self._good_steps.assign(tf.where(grows, tf.zeros_like(steps), steps))
            return tf.constant(True)

        def overflowed() -> tf.Tensor:
            self.value.assign(tf.maximum(0.5 * self.value, SMALLEST))
            self._good_steps.assign(0)
            return tf.constant(False)

        tf.cond(is_finite, good, overflowed)
