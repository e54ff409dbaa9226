"""Training with less memory for the same gradients: what a function computes on the way is made again for them.

Both ways trace a function as a pure one of its inputs and of the state that it writes (averages of batch norm, states
of dropout) and run that trace twice from the same state. So the second run draws the random numbers of the first, and
the state moves once.

They are for use within a tf.function. The function's layers must be built; its state must stand in Keras variables,
random numbers come from keras.random.SeedGenerator; a tensor that needs a gradient must be one of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf


def recompute(function: Callable[..., Any], *inputs: tf.Tensor) -> Any:
    """`function(*inputs)`, of which the gradient keeps the inputs alone (Chen et al., 2016, arXiv:1604.06174).

    The gradient runs the function once more, and only if one is wanted of the inputs or of a variable.

    Args:
      function: tensors -> a tensor, or a structure of tensors.
      inputs: of any dtype; those of float type have gradients.

    Raises:
      ValueError: if the function adds losses or uses float tensors from outside that are not its inputs.
    """
    pure = _PureFunction(function, [tf.TensorSpec.from_tensor(x) for x in inputs])
    before = pure.read_state()
    after: list[tf.Tensor] = []

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[Any, Callable[..., Any]]:
        outputs, state = pure(inputs, before)
        after.extend(state)

        def gradient(*upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
            upstream = [tf.convert_to_tensor(g) for g in upstream]
            again, state = _delayed(inputs, upstream), _delayed(before, upstream)
            gradients, _ = pure.gradients(again, state, upstream, variables)
            return _by_source(gradients, inputs, variables)

        return outputs, gradient

    outputs = run(*inputs)
    pure.write_state(after)
    return outputs


def in_micro_batches(function: Callable[..., tf.Tensor], size: int, *inputs: tf.Tensor) -> tf.Tensor:
    """`function(*inputs)` on `size` rows at a time, of which the gradient keeps the inputs alone.

    The gradient runs the function once more on each slice and adds the slices' gradients up. It is that of the whole
    where rows do not meet; batch norm takes the statistics of each slice, and moves its averages once a slice.

    Args:
      function: tensors of at most `size` rows -> a tensor of as many.
      size: rows of a slice; the last one may have fewer.
      inputs: `[P, ...]` of any dtype; those of float type have gradients. The function does not run if P is 0.

    Returns:
      `[P, ...]`.

    Raises:
      ValueError: if size is not positive; if the shape of a row of the output or of a float input is open; if the
        function looks up rows of a trained table, which is for the caller to do: its gradient, summed, would take the
        memory of the table; and as `recompute` does.
    """
    if size < 1:
        raise ValueError(f"in_micro_batches: size is {size}; give the number of rows of a slice")
    pure = _PureFunction(function, [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in inputs])
    num_rows = tf.shape(inputs[0])[0]
    num_slices = -(-num_rows // size)
    before = pure.read_state()
    after: list[tf.Tensor] = []

    def rows(i: tf.Tensor, tensors: Iterable[tf.Tensor]) -> list[tf.Tensor]:
        return [x[i * size : (i + 1) * size] for x in tensors]

    def for_each_slice(body: Callable[..., Any], *values: Any) -> Any:
        # One after the other: by default ten would run, and hold their tensors, at a time.
        _, *values = tf.while_loop(
            lambda i, *_: i < num_slices,
            lambda i, *values: (i + 1, *body(i, *values)),
            (tf.constant(0), *values),
            parallel_iterations=1,
        )
        return values

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def forward(i: tf.Tensor, outputs: tf.TensorArray, state: list[tf.Tensor]) -> tuple[Any, ...]:
            output, state = pure(rows(i, inputs), state)
            return outputs.write(i, output), state

        outputs, state = for_each_slice(forward, _slices(num_slices, pure.outputs), before)
        after.extend(state)

        def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
            upstream = tf.convert_to_tensor(upstream)
            again, state = _delayed(inputs, [upstream]), _delayed(before, [upstream])
            has_gradient: list[bool] = []

            def backward(i: tf.Tensor, sums: list[Any], state: list[tf.Tensor]) -> tuple[Any, ...]:
                gradients, state = pure.gradients(rows(i, again), state, rows(i, [upstream]), variables)
                has_gradient[:] = [g is not None for g in gradients]
                return [_add(total, i, g) for total, g in zip(sums, gradients, strict=True)], state

            # An input of integers has no gradient, but a place.
            sums = [_slices(num_slices, x) if x.dtype.is_floating else tf.constant(0.0) for x in inputs]
            sums += [tf.zeros_like(v) for v in variables]
            sums, _ = for_each_slice(backward, sums, state)
            sums = [_whole(total) if has else None for total, has in zip(sums, has_gradient, strict=True)]
            return _by_source(sums, inputs, variables)

        return outputs.concat(), gradient

    output = run(*inputs)
    pure.write_state(after)
    return output


class _State(keras.StatelessScope):
    """A scope in which a Keras variable that is written keeps its value, and reads within the scope see the new one.

    `written` holds the variables, by identity.
    """

    def __init__(self, values: Iterable[tuple[keras.Variable, tf.Tensor]] = ()) -> None:
        super().__init__(collect_losses=True)
        self.written: dict[int, keras.Variable] = {}
        for update in values:
            self.add_update(update)

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        self.written[id(update[0])] = update[0]
        super().add_update(update)

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            return self.original_scope.get_current_value(variable)
        return value


class _PureFunction:
    """A function, traced: inputs and the state before -> outputs and the state after, which is not yet written."""

    def __init__(self, function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> None:
        self._function = function
        # The first trace tells what the function writes, the second has that as inputs and outputs.
        self._state: list[keras.Variable] = []
        self._traced = self._trace(specs)
        if self._state:
            self._traced = self._trace(specs)
        self.outputs = self._traced.structured_outputs[0]

    def _trace(self, specs: Sequence[tf.TensorSpec]) -> Any:
        variables = self._state

        def pure(inputs: list[tf.Tensor], state: list[tf.Tensor]) -> tuple[Any, list[tf.Tensor]]:
            with _State(zip(variables, state, strict=True)) as scope:
                outputs = self._function(*inputs)
            if scope.losses:
                raise ValueError("recompute: the function adds losses (add_loss); let it return them")
            self._state = list(scope.written.values())
            # What moves an average is no path of the gradient.
            return outputs, [tf.stop_gradient(scope.get_current_value(v)) for v in self._state]

        state_specs = [tf.TensorSpec(v.shape, v.dtype) for v in variables]
        return tf.function(pure, autograph=False).get_concrete_function(list(specs), state_specs)

    def __call__(self, inputs: Sequence[tf.Tensor], state: Sequence[tf.Tensor]) -> tuple[Any, list[tf.Tensor]]:
        outputs, state = self._traced(list(inputs), list(state))
        return outputs, list(state)

    def gradients(
        self,
        inputs: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        upstream: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
    ) -> tuple[list[Any], list[tf.Tensor]]:
        """Gradients of the inputs and of the variables, by a run of the function; and the state after that."""
        sources = [*inputs, *variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x for x in sources if x.dtype.is_floating])
            outputs, state = self(inputs, state)
        return tape.gradient(tf.nest.flatten(outputs), sources, output_gradients=list(upstream)), state

    def read_state(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(v.value) for v in self._state]

    def write_state(self, values: Sequence[tf.Tensor]) -> None:
        for variable, value in zip(self._state, values, strict=True):
            variable.assign(value)


def _delayed(tensors: Sequence[tf.Tensor], upstream: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The same tensors, not before the gradient `upstream` is there.

    Else the second run would start at once, and TensorFlow would take its operations for those of the first.
    """
    with tf.control_dependencies([tf.identity(g) for g in upstream]):
        return [tf.identity(x) for x in tensors]


def _slices(num_slices: tf.Tensor, whole: tf.Tensor) -> tf.TensorArray:
    """For the slices of a tensor such as `whole`."""
    if not whole.shape[1:].is_fully_defined():
        raise ValueError(f"in_micro_batches: a row has the shape {whole.shape[1:]}; give every dimension a size")
    return tf.TensorArray(whole.dtype, num_slices, element_shape=[None, *whole.shape[1:]], infer_shape=False)


def _add(total: Any, i: tf.Tensor, gradient: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        raise ValueError("in_micro_batches: the function looks up rows of a table; look them up outside, as an input")
    if gradient is None:
        return total
    return total.write(i, gradient) if isinstance(total, tf.TensorArray) else total + gradient


def _whole(total: Any) -> tf.Tensor:
    return total.concat() if isinstance(total, tf.TensorArray) else total


def _by_source(gradients: list[Any], inputs: Sequence[tf.Tensor], variables: Sequence[tf.Variable]) -> Any:
    """As tf.custom_gradient wants them."""
    return (gradients[: len(inputs)], gradients[len(inputs) :]) if variables else gradients
