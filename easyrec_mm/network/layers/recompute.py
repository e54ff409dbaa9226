"""Training with less memory and the same gradients: a function's intermediate results are computed again for them.

`recompute` and `in_micro_batches` trace a function as a pure function of its inputs and of the state that it writes
(averages of batch norm, states of dropout), and run that trace twice from the same state. So the second run draws the
same random numbers as the first, and the state changes only once.

They are for use within a tf.function. The layers of the function must be built. Its state must be in Keras variables,
and so must that of random numbers: keras.random repeats its numbers, tf.random does not. Variables that it only reads
must keep their values until the gradient is computed, and a tensor that needs a gradient must be one of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow.python.eager import record

Tensors = Sequence[tf.Tensor]


def recompute(function: Callable[..., Any], *inputs: tf.Tensor) -> Any:
    """Return `function(*inputs)` and keep only the inputs for the gradient (Chen et al., 2016, arXiv:1604.06174).

    The gradient runs the function once more, and only if a gradient is requested.

    Args:
      function: tensors -> a tensor, or a structure of tensors.
      inputs: tensors of any dtype; those of float type have gradients.

    Raises:
      ValueError: if the function adds losses, or reads a float tensor of the graph that is not among its inputs.
    """
    pure = _PureFunction(function, [tf.TensorSpec.from_tensor(x) for x in inputs])
    before = pure.read_state()
    after: list[tf.Tensor] = []

    @tf.custom_gradient  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def run(*inputs: tf.Tensor) -> tuple[Any, Callable[..., Any]]:
        outputs, after[:] = pure(inputs, before)

        def gradient(*upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
            again, state, delayed = _delayed(inputs, before, upstream)
            gradients, _ = pure.gradients(again, state, delayed, variables)
            return _for_custom_gradient(_ended(gradients, len(inputs)), inputs)

        return outputs, gradient

    outputs = run(*inputs)
    pure.write_state(after)
    return outputs


def in_micro_batches(function: Callable[..., tf.Tensor], size: int, *inputs: tf.Tensor) -> tf.Tensor:
    """Return `function(*inputs)`, computed on `size` rows at a time, and keep only the inputs for the gradient.

    The gradient runs the function once more on each slice, one after the other, and sums the slices' gradients. It
    equals the gradient of the whole if no row depends on another row; batch norm uses the statistics of each slice and
    updates its averages once per slice.

    Args:
      function: tensors of at most `size` rows -> a tensor with the same number of rows.
      size: rows of a slice; the last slice may have fewer.
      inputs: `[P, ...]` of any dtype; those of float type have gradients, which are computed even if nobody asks for
        them. If P is 0, the function does not run.

    Returns:
      `[P, ...]`.

    Raises:
      ValueError: if size is not positive; if the shape of a row of the output or of a float input is not fully defined;
        if the function looks up rows of a trained table, whose summed gradient would be as large as the table (look
        them up outside, and pass them as an input); and in the cases of `recompute`.
    """
    if size < 1:
        raise ValueError(f"in_micro_batches: size is {size}; give the number of rows of a slice, 1 or more")
    pure = _PureFunction(function, [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in inputs])
    slices = _Slices(size, number=-(-tf.shape(inputs[0])[0] // size))
    before = pure.read_state()
    after: list[tf.Tensor] = []

    @tf.custom_gradient  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        def forward(i: tf.Tensor, outputs: tf.TensorArray, state: Tensors) -> tuple[tf.TensorArray, Tensors]:
            output, state = pure(slices.rows(i, inputs), state)
            return outputs.write(i, output), state

        outputs, after[:] = slices.for_each(forward, slices.array(pure.outputs), before)

        def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> Any:
            again, state, upstream = _delayed(inputs, before, [upstream])
            gradients = _sum_of_gradients(pure, slices, again, state, upstream, variables)
            return _for_custom_gradient(gradients, inputs)

        return outputs.concat(), gradient

    output = run(*inputs)
    pure.write_state(after)
    return output


class _State(keras.StatelessScope):
    """A scope that leaves Keras variables unchanged: values written in the scope are visible only to reads in it.

    `variables` contains, by id, the variables that have a value in the scope.
    """

    def __init__(self, values: Iterable[tuple[keras.Variable, tf.Tensor]]) -> None:
        super().__init__(collect_losses=True)
        self.variables: dict[int, keras.Variable] = {}
        for update in values:
            self.add_update(update)

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        self.variables[id(update[0])] = update[0]
        super().add_update(update)

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | None:
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            value = self.original_scope.get_current_value(variable)
            if value is not None:
                self.add_update((variable, value))
        return value


class _PureFunction:
    """A traced function, (inputs, state before) -> (outputs, state after), which does not write the new state."""

    def __init__(self, function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> None:
        self._function = function
        self._state: list[keras.Variable] = []
        # The first trace finds the state; the second trace has it among its inputs and outputs.
        self._traced = self._trace(specs)
        if self._state:
            self._traced = self._trace(specs)
        self.outputs = self._traced.structured_outputs[0]
        if any(tf.is_symbolic_tensor(x) and x.dtype.is_floating for x in self._traced.captured_inputs):
            raise ValueError(
                f"recompute: {function} reads a float tensor from outside, which would get no gradient; "
                "make it an input, or compute it inside"
            )
        self._watched = {v.ref() for v in self._traced.graph.variables if _is_watched(v)}

    def _trace(self, specs: Sequence[tf.TensorSpec]) -> Any:
        variables = self._state

        def pure(inputs: Tensors, state: Tensors) -> tuple[Any, list[tf.Tensor]]:
            with _State(zip(variables, state, strict=True)) as scope:
                outputs = self._function(*inputs)
            if scope.losses:
                raise ValueError(
                    f"recompute: {self._function} adds losses; let it return the values to compute them from"
                )
            self._state = list(scope.variables.values())
            # Otherwise the gradient would also be computed through the moments of a batch, with upstream zeros.
            return outputs, [tf.stop_gradient(scope.get_current_value(v)) for v in self._state]

        state_specs = [tf.TensorSpec(v.shape, v.dtype) for v in variables]
        return tf.function(pure, autograph=False).get_concrete_function(list(specs), state_specs)

    def __call__(self, inputs: Tensors, state: Tensors) -> tuple[Any, list[tf.Tensor]]:
        outputs, state = self._traced(list(inputs), list(state))
        return outputs, list(state)

    def has_gradient(self, source: tf.Tensor | tf.Variable) -> bool:
        """Return whether a gradient is worth computing: for float tensors, and for variables that a tape watches."""
        if isinstance(source, tf.Variable):
            return source.ref() in self._watched
        return bool(source.dtype.is_floating)

    def gradients(
        self, inputs: Tensors, state: Tensors, upstream: Tensors, variables: Sequence[tf.Variable]
    ) -> tuple[list[Any], list[tf.Tensor]]:
        """Run the function; return the gradients of inputs and variables (None if missing) and the state after it."""
        sources = [*inputs, *variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([x for x in sources if self.has_gradient(x)])
            outputs, state = self(inputs, state)
        # Integer outputs have no gradient.
        used = [(y, g) for y, g in zip(tf.nest.flatten(outputs), upstream, strict=True) if g is not None]
        targets, upstream = zip(*used, strict=True)
        return tape.gradient(targets, sources, output_gradients=upstream), state

    def read_state(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(v.value) for v in self._state]

    def write_state(self, values: Tensors) -> None:
        for variable, value in zip(self._state, values, strict=True):
            variable.assign(value)


class _Slices(NamedTuple):
    """A division of tensors into `number` slices of `size` rows; the last slice may have fewer rows."""

    size: int
    number: tf.Tensor

    def rows(self, i: tf.Tensor, tensors: Tensors) -> list[tf.Tensor]:
        """Return the rows of slice i."""
        return [x[i * self.size : (i + 1) * self.size] for x in tensors]

    def array(self, tensor: tf.Tensor) -> tf.TensorArray:
        """Return an empty array for the slices of such a tensor."""
        if not tensor.shape[1:].is_fully_defined():
            raise ValueError(
                f"in_micro_batches: the shape of a row, {tensor.shape[1:]}, is not fully defined; set its dimensions"
            )
        return tf.TensorArray(tensor.dtype, self.number, element_shape=[None, *tensor.shape[1:]], infer_shape=False)

    def for_each(self, body: Callable[..., Any], *values: Any) -> Any:
        """Run `values = body(i, *values)` for each slice i and return the final values."""
        # One slice after the other: by default ten slices would run, and keep their tensors, at the same time.
        _, *values = tf.while_loop(
            lambda i, *_: i < self.number,
            lambda i, *values: (i + 1, *body(i, *values)),
            (tf.constant(0), *values),
            parallel_iterations=1,
        )
        return values


def _sum_of_gradients(
    pure: _PureFunction,
    slices: _Slices,
    inputs: Tensors,
    state: Tensors,
    upstream: Tensors,
    variables: Sequence[tf.Variable],
) -> list[tf.Tensor | None]:
    """Return the gradients of the inputs, concatenated over slices, and of the variables, summed over slices."""
    is_connected: list[bool] = []

    def body(i: tf.Tensor, sums: list[Any], state: Tensors) -> tuple[list[Any], Tensors]:
        gradients, state = pure.gradients(slices.rows(i, inputs), state, slices.rows(i, upstream), variables)
        is_connected[:] = [gradient is not None for gradient in gradients]
        return [_add(total, i, gradient) for total, gradient in zip(sums, gradients, strict=True)], state

    # Only for what a tape watches, because TensorFlow does not remove unused results from a loop.
    sums: list[Any] = [slices.array(x) if pure.has_gradient(x) else tf.constant(0) for x in inputs]
    sums += [tf.zeros_like(v) if pure.has_gradient(v) else tf.constant(0) for v in variables]
    sums, _ = slices.for_each(body, sums, state)
    return [_total(x) if connected else None for x, connected in zip(sums, is_connected, strict=True)]


def _add(total: Any, i: tf.Tensor, gradient: Any) -> Any:
    if gradient is None:
        return total
    if isinstance(gradient, tf.IndexedSlices):
        num_rows = gradient.indices.shape[0]
        if num_rows is not None and num_rows >= total.shape[0]:
            # A position embedding: all of its rows are looked up.
            return total + tf.convert_to_tensor(gradient)
        raise ValueError("in_micro_batches: the function looks up rows of a table; look them up outside, as an input")
    return total.write(i, gradient) if isinstance(total, tf.TensorArray) else total + gradient


def _total(total: tf.Tensor | tf.TensorArray) -> tf.Tensor:
    return total.concat() if isinstance(total, tf.TensorArray) else total


def _delayed(inputs: Tensors, state: Tensors, upstream: Tensors) -> tuple[list[tf.Tensor], ...]:
    """Return the arguments, with inputs and state available only after the upstream gradients.

    Otherwise the second run would start at once, in parallel with the first run, or be merged with it.
    """
    upstream = [None if g is None else tf.identity(tf.convert_to_tensor(g)) for g in upstream]
    with tf.control_dependencies([g for g in upstream if g is not None]):
        return [tf.identity(x) for x in inputs], [tf.identity(x) for x in state], upstream


def _ended(gradients: list[Any], num_inputs: int) -> list[Any]:
    """Return the gradients, with those of inputs available only after those of variables.

    Otherwise the part before the inputs could start its second run while this part still keeps its tensors.
    """
    of_inputs, of_variables = gradients[:num_inputs], [_identity(g) for g in gradients[num_inputs:]]
    with tf.control_dependencies([g for g in of_variables if g is not None]):
        return [*(_identity(g) for g in of_inputs), *of_variables]


def _identity(gradient: Any) -> Any:
    """Copy a gradient to wait for: a control dependency on a function call is lost when TensorFlow inlines the call."""
    return None if gradient is None else tf.identity(gradient)


def _is_watched(variable: tf.Variable) -> bool:
    """Return whether a tape needs the variable's gradient; True if there is no tape yet, because one may follow."""
    return not record.could_possibly_record() or record.should_record_backprop([variable.handle])


def _for_custom_gradient(gradients: list[Any], inputs: Tensors) -> Any:
    """Return the gradients of inputs and variables in the form that tf.custom_gradient expects."""
    of_inputs, of_variables = gradients[: len(inputs)], gradients[len(inputs) :]
    return (of_inputs, of_variables) if of_variables else of_inputs
