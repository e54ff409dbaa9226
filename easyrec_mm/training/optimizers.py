"""Optimizers: how gradients change variables and embedding tables.

For an embedding table (its gradient is tf.IndexedSlices), every optimizer gathers the rows of the batch, updates them
and scatters them back, so that a step costs the same whatever the number of rows. Stock Keras optimizers turn such a
gradient into a dense one, which is 50 times slower at 4M rows. Dense variables use TensorFlow's fused kernels.

To add one, add a class here with its `rule` and `apply_dense`, and its key in OPTIMIZERS and protos/optimizer.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from easyrec_mm.distribution.shards import mark_like
from easyrec_mm.network.layers.row_lookup import joined, split_like
from easyrec_mm.protos.optimizer_pb2 import Optimizer as OptimizerConfig
from easyrec_mm.training.learning_rates import Schedule
from easyrec_mm.training.row_gradients import grouped

Rows = list[tf.Tensor]


class RowOptimizer(keras.optimizers.Optimizer):
    """Base class of optimizers: one rule for the rows of a table, one fused kernel for dense variables.

    Args:
      learning_rate: schedule of the learning rate.
      rate_factors: id of a variable -> factor of its learning rate, if it is not 1.
      first_steps: id of a variable -> the first step, from 0, that trains it, if it is not 0.
    """

    # Name of each slot variable -> its initial value.
    slots: dict[str, float] = {}  # noqa: RUF012

    def __init__(
        self,
        learning_rate: keras.optimizers.schedules.LearningRateSchedule,
        rate_factors: Mapping[int, float] | None = None,
        first_steps: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=type(self).__name__)
        self._schedule, self._rate_factors = learning_rate, dict(rate_factors or {})
        self._first_steps = dict(first_steps or {})
        # First step of the variable that is being updated.
        self._first_step = 0
        # In the update that is being traced: (base, first step) -> base ^ number of the step; settings as tensors.
        self._powers: dict[tuple[float, int], tf.Tensor] = {}
        self._constants: dict[float, tf.Tensor] = {}
        self._slot_variables: dict[str, list[keras.Variable]] = {}

    def build(self, variables: list[keras.Variable]) -> None:
        """Create the slots of these variables."""
        super().build(variables)
        for slot, initial in self.slots.items():
            # Keras's Constant multiplies a tensor of ones, which is one more copy of the table.
            fill = partial(_fill, initial)
            self._slot_variables[slot] = [self.add_variable_from_reference(v, slot, fill) for v in variables]
            for variable, reference in zip(self._slot_variables[slot], variables, strict=True):
                mark_like(variable.value, reference.value)

    def named_slots(self, names: Sequence[str]) -> dict[str, keras.Variable]:
        """Return the slots by "<name of the variable>/<slot>"; `names` are those of the variables passed to `build`."""
        return {
            f"{name}/{slot}": variable
            for slot, variables in self._slot_variables.items()
            for name, variable in zip(names, variables, strict=True)
        }

    def last_learning_rate(self) -> float:
        """Return the learning rate of the last step that has changed weights."""
        return float(self._schedule(tf.maximum(self.iterations.value - 1, 0)))

    def rate_factors(self, variables: Sequence[keras.Variable]) -> list[float]:
        """Return the factors by which variables change the learning rate."""
        return [self._rate_factors.get(id(variable.value), 1.0) for variable in variables]

    def apply(self, grads: list[Any], trainable_variables: list[keras.Variable]) -> None:
        """Update the variables by their gradients. The rows of an IndexedSlices must be distinct (row_gradients.py).

        Rows of tables of a width that learn alike are updated together, because the time to compile a step, and to
        begin it, grows with its operations.
        """
        if not self.built:
            self.build(trainable_variables)
        self._powers, self._constants = {}, {}
        learning_rate = self.learning_rate
        slices: list[tuple[tf.IndexedSlices, tf.Variable]] = []
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            if isinstance(gradient, tf.IndexedSlices):
                slices.append((gradient, variable.value))
            else:
                rate, slots = self._begin(variable.value, learning_rate), self._slots(variable.value)
                self.apply_dense(variable.value, slots, gradient, rate)
        for members in grouped(slices, lambda pair: self._kind(pair[1])):
            rate = self._begin(members[0][1], learning_rate)
            self._apply_rows([gradient for gradient, _ in members], [table for _, table in members], rate)
        self.iterations.assign_add(1)

    def _kind(self, variable: tf.Variable) -> tuple[object, ...]:
        """Return what the tables must have in common that are updated together."""
        key = id(variable)
        shape = tuple(variable.shape[1:])
        return shape, variable.dtype, self._rate_factors.get(key, 1.0), self._first_steps.get(key, 0)

    def _begin(self, variable: tf.Variable, learning_rate: tf.Tensor) -> tf.Tensor:
        """Begin the update of a variable, and return its learning rate."""
        self._first_step = self._first_steps.get(id(variable), 0)
        rate = tf.cast(learning_rate, variable.dtype)
        factor = self._rate_factors.get(id(variable))
        return rate if factor is None else rate * factor

    def _slots(self, variable: tf.Variable) -> list[tf.Variable]:
        index = self._get_variable_index(variable)
        return [variables[index].value for variables in self._slot_variables.values()]

    def _apply_rows(self, slices: Sequence[tf.IndexedSlices], tables: Sequence[tf.Variable], rate: tf.Tensor) -> None:
        """Update rows of tables of a kind."""
        ids = [gradient.indices for gradient in slices]
        of_slots = list(zip(*[self._slots(table) for table in tables], strict=True))
        rows, *slots = [_gathered(variables, ids) for variables in (tables, *of_slots)]
        new_rows, new_slots = self.rule(rows, slots, joined([gradient.values for gradient in slices]), rate)
        for variables, values in zip((tables, *of_slots), (new_rows, *new_slots), strict=True):
            for variable, part, of_table in zip(variables, split_like(values, ids), ids, strict=True):
                tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=of_table, updates=part)

    def rule(self, rows: tf.Tensor, slots: Rows, gradient: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, Rows]:
        """Return the new rows and slots, all `[number of rows, dim]`."""
        raise NotImplementedError

    def apply_dense(
        self, variable: tf.Variable, slots: list[tf.Variable], gradient: tf.Tensor, rate: tf.Tensor
    ) -> None:
        """Update a whole variable in place."""
        raise NotImplementedError

    def _step_power(self, base: float) -> tf.Tensor:
        """Return base ^ t, where t counts, from 1, the steps that train the current variable.

        Most variables share t, so each power is computed once: tracing an operation takes a third of a millisecond.
        """
        key = (base, self._first_step)
        if key not in self._powers:
            # At least 1, because `iterations` does not count steps that overflowed.
            step = tf.cast(tf.maximum(self.iterations.value + 1 - self._first_step, 1), tf.float32)
            self._powers[key] = tf.pow(base, step)
        return self._powers[key]

    def _constant(self, value: float) -> tf.Tensor:
        """Return a setting as a tensor, one for all variables: TensorFlow would make one for each operation."""
        if value not in self._constants:
            self._constants[value] = tf.constant(value)
        return self._constants[value]


def _gathered(tables: Sequence[tf.Variable], ids: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return rows of tables, one behind the other."""
    return joined(
        [
            tf.raw_ops.ResourceGather(resource=table.handle, indices=of_table, dtype=table.dtype)
            for table, of_table in zip(tables, ids, strict=True)
        ]
    )


def _fill(value: float, shape: Sequence[int], dtype: str | None = None) -> tf.Tensor:
    return tf.fill(shape, tf.cast(value, dtype or tf.float32))


class Sgd(RowOptimizer):
    """w -= rate * g."""

    def rule(self, rows: tf.Tensor, slots: Rows, gradient: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, Rows]:
        return rows - rate * gradient, []

    def apply_dense(
        self, variable: tf.Variable, slots: list[tf.Variable], gradient: tf.Tensor, rate: tf.Tensor
    ) -> None:
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)


class Momentum(RowOptimizer):
    """a = momentum * a + g; w -= rate * a (TensorFlow 1's MomentumOptimizer)."""

    slots = {"accumulator": 0.0}  # noqa: RUF012

    def __init__(self, momentum: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._momentum = momentum

    def rule(self, rows: tf.Tensor, slots: Rows, gradient: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, Rows]:
        accumulator = self._momentum * slots[0] + gradient
        return rows - rate * accumulator, [accumulator]

    def apply_dense(
        self, variable: tf.Variable, slots: list[tf.Variable], gradient: tf.Tensor, rate: tf.Tensor
    ) -> None:
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle, accum=slots[0].handle, lr=rate, grad=gradient, momentum=self._constant(self._momentum)
        )


class RmsProp(RowOptimizer):
    """s = decay s + (1 - decay) g^2; a = momentum a + rate g / sqrt(s + epsilon); w -= a. s starts at 1, as in TF 1."""

    slots = {"mean_square": 1.0, "accumulator": 0.0}  # noqa: RUF012

    def __init__(self, decay: float, momentum: float, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._decay, self._momentum, self._epsilon = decay, momentum, epsilon

    def rule(self, rows: tf.Tensor, slots: Rows, gradient: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, Rows]:
        mean_square = self._decay * slots[0] + (1.0 - self._decay) * tf.square(gradient)
        accumulator = self._momentum * slots[1] + rate * gradient / tf.sqrt(mean_square + self._epsilon)
        return rows - accumulator, [mean_square, accumulator]

    def apply_dense(
        self, variable: tf.Variable, slots: list[tf.Variable], gradient: tf.Tensor, rate: tf.Tensor
    ) -> None:
        tf.raw_ops.ResourceApplyRMSProp(
            var=variable.handle,
            ms=slots[0].handle,
            mom=slots[1].handle,
            lr=rate,
            rho=self._constant(self._decay),
            momentum=self._constant(self._momentum),
            epsilon=self._constant(self._epsilon),
            grad=gradient,
        )


class Adagrad(RowOptimizer):
    """a += g^2; w -= rate * g / (sqrt(a) + epsilon) (Duchi et al., JMLR 2011)."""

    # Needed only if the accumulator starts at 0.
    epsilon = 1e-7

    def __init__(self, initial_accumulator: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slots = {"accumulator": initial_accumulator}

    def rule(self, rows: tf.Tensor, slots: Rows, gradient: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, Rows]:
        accumulator = slots[0] + tf.square(gradient)
        return rows - rate * gradient / (tf.sqrt(accumulator) + self.epsilon), [accumulator]

    def apply_dense(
        self, variable: tf.Variable, slots: list[tf.Variable], gradient: tf.Tensor, rate: tf.Tensor
    ) -> None:
        tf.raw_ops.ResourceApplyAdagradV2(
            var=variable.handle, accum=slots[0].handle, lr=rate, epsilon=self._constant(self.epsilon), grad=gradient
        )


class Ftrl(RowOptimizer):
    """FTRL-Proximal (McMahan et al., KDD 2013, algorithm 1), with L2 shrinkage of the gradient."""

    def __init__(
        self, power: float, initial_accumulator: float, l1: float, l2: float, shrinkage: float, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.slots = {"accumulator": initial_accumulator, "linear": 0.0}
        self._power, self._l1, self._l2, self._shrinkage = power, l1, l2, shrinkage

    # The rule divides by the rate. If that is 0, as when a warm-up starts or a cosine ends, nothing changes.
    def _apply_rows(self, slices: Sequence[tf.IndexedSlices], tables: Sequence[tf.Variable], rate: tf.Tensor) -> None:
        update = super()._apply_rows
        tf.cond(rate > 0, lambda: update(slices, tables, rate), lambda: None)

    def rule(self, rows: tf.Tensor, slots: Rows, gradient: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, Rows]:
        old, linear = slots
        accumulator = old + tf.square(gradient)
        sigma = (tf.pow(accumulator, -self._power) - tf.pow(old, -self._power)) / rate
        linear += gradient + 2.0 * self._shrinkage * rows - sigma * rows
        quadratic = tf.pow(accumulator, -self._power) / rate + 2.0 * self._l2
        numerator = tf.clip_by_value(linear, -self._l1, self._l1) - linear
        # Both are 0 if the accumulator starts at 0 and the gradient is 0; the fused kernel then returns 0, too.
        return tf.math.divide_no_nan(numerator, quadratic), [accumulator, linear]

    def apply_dense(
        self, variable: tf.Variable, slots: list[tf.Variable], gradient: tf.Tensor, rate: tf.Tensor
    ) -> None:
        def update() -> None:
            tf.raw_ops.ResourceApplyFtrlV2(
                var=variable.handle,
                accum=slots[0].handle,
                linear=slots[1].handle,
                grad=gradient,
                lr=rate,
                l1=self._l1,
                l2=self._l2,
                l2_shrinkage=self._shrinkage,
                lr_power=self._power,
            )

        tf.cond(rate > 0, update, lambda: None)


class Adam(RowOptimizer):
    """Adam (Kingma and Ba, ICLR 2015, end of section 2) with decoupled decay (Loshchilov and Hutter, ICLR 2019).

    m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    w -= rate * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon), and before it w -= rate * decay * w.

    On tables it is lazy: m and v of a row decay only when the row is used.
    """

    slots = {"m": 0.0, "v": 0.0}  # noqa: RUF012
    epsilon = 1e-8

    def __init__(self, beta1: float, beta2: float, decay: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._beta1, self._beta2, self._decay = beta1, beta2, decay

    def rule(self, rows: tf.Tensor, slots: Rows, gradient: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, Rows]:
        m = self._beta1 * slots[0] + (1.0 - self._beta1) * gradient
        v = self._beta2 * slots[1] + (1.0 - self._beta2) * tf.square(gradient)
        step_size = rate * tf.sqrt(1.0 - self._step_power(self._beta2)) / (1.0 - self._step_power(self._beta1))
        return rows * (1.0 - rate * self._decay) - step_size * m / (tf.sqrt(v) + self.epsilon), [m, v]

    def apply_dense(
        self, variable: tf.Variable, slots: list[tf.Variable], gradient: tf.Tensor, rate: tf.Tensor
    ) -> None:
        # Variables of one dimension do not decay: biases, and scales and offsets of normalisation.
        if self._decay and len(variable.shape) > 1:
            variable.assign_sub(rate * self._decay * variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=slots[0].handle,
            v=slots[1].handle,
            beta1_power=self._step_power(self._beta1),
            beta2_power=self._step_power(self._beta2),
            lr=rate,
            beta1=self._constant(self._beta1),
            beta2=self._constant(self._beta2),
            epsilon=self._constant(self.epsilon),
            grad=gradient,
        )


# Field of the Optimizer message -> how to build it from its message.
OPTIMIZERS: dict[str, Callable[..., RowOptimizer]] = {
    "sgd_optimizer": lambda c, **kw: Sgd(**kw),
    "momentum_optimizer": lambda c, **kw: Momentum(c.momentum_optimizer_value, **kw),
    "rms_prop_optimizer": lambda c, **kw: RmsProp(c.decay, c.momentum_optimizer_value, c.epsilon, **kw),
    "adagrad_optimizer": lambda c, **kw: Adagrad(c.initial_accumulator_value, **kw),
    "ftrl_optimizer": lambda c, **kw: Ftrl(
        c.learning_rate_power, c.initial_accumulator_value, c.l1_reg, c.l2_reg, c.l2_shrinkage_reg, **kw
    ),
    "adam_optimizer": lambda c, **kw: Adam(c.beta1, c.beta2, **kw),
    "lazy_adam_optimizer": lambda c, **kw: Adam(c.beta1, c.beta2, **kw),
    "adamw_optimizer": lambda c, **kw: Adam(c.beta1, c.beta2, c.weight_decay, **kw),
}


def build_optimizer(
    config: OptimizerConfig,
    tables: Sequence[keras.Variable] = (),
    rate_factors: Mapping[int, float] | None = None,
    first_steps: Mapping[int, int] | None = None,
    end: tf.Variable | None = None,
) -> RowOptimizer:
    """Build the optimizer of a config.

    Args:
      config: settings of the optimizer.
      tables: the embedding tables among the variables that it will update.
      rate_factors: id of a tf.Variable -> factor of its learning rate, if it is not 1.
      first_steps: id of a tf.Variable -> the first step, from 0, that trains it, if it is not 0.
      end: step at which the training ends, for schedules that end with it.
    """
    kind = config.WhichOneof("optimizer")
    settings = getattr(config, kind)
    factors = dict(rate_factors or {})
    if config.embedding_learning_rate_multiplier != 1:
        for table in tables:
            factors[id(table.value)] = factors.get(id(table.value), 1.0) * config.embedding_learning_rate_multiplier
    return OPTIMIZERS[kind](
        settings, learning_rate=Schedule(settings.learning_rate, end), rate_factors=factors, first_steps=first_steps
    )
