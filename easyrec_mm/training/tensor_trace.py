"""Follows the operations of a step that runs eagerly, and finds the first one that makes its result NaN or infinite.

TensorFlow calls back after each operation. This interface of TensorFlow is not public; nothing public names the layer
of an operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework import op_callbacks

FORWARD, BACKWARD = "forward pass", "backward pass"
_WEIGHTS = "weights "
# The name scope of a functional model within the image tower, whose variables are called image/backbone.
_FUNCTIONAL = re.compile(r"^image/functional(_\d+)?(?=/|$)")


@dataclass(frozen=True)
class Operand:
    """An input of an operation: what it is, its shape, and its largest finite number without its sign."""

    name: str
    value: NDArray[Any]

    @property
    def is_weight(self) -> bool:
        """Return whether it is a variable."""
        return self.name.startswith(_WEIGHTS)

    @property
    def largest(self) -> float:
        """Return the largest finite number, without its sign; 0 without numbers."""
        return largest(self.value)


@dataclass(frozen=True)
class Operation:
    """An operation with an output that is not finite.

    place     name scope of its layer; "" outside of layers
    kind      the type of the operation in TensorFlow
    part      FORWARD or BACKWARD
    output    the output that is not finite
    operands  its inputs that hold numbers
    causes    numbers of the earlier operations whose outputs, not finite, it reads
    """

    place: str
    kind: str
    part: str
    output: NDArray[Any]
    operands: list[Operand]
    causes: list[int]


class TensorTrace:
    """Remembers the operations whose outputs are not finite.

    Args:
      names: what tensors and variables are called that exist before.
      variables: names of variables.

    Attributes:
      part: the part of the step that runs.
      operations: those with an output that is not finite, in their order.
    """

    def __init__(self, names: Iterable[tuple[str, tf.Tensor]], variables: Mapping[str, tf.Variable]) -> None:
        self.part = FORWARD
        self.operations: list[Operation] = []
        self._kept: list[Any] = []  # tensors that stay alive, because another could get the same id
        self._names: dict[int, str] = {}
        for name, tensor in names:
            self._keep(tensor, name)
        for name, variable in variables.items():
            self._keep(variable.handle, f"{_WEIGHTS}{name}")
        self._places: dict[int, str] = {}
        self._useless: dict[int, int] = {}  # id of a tensor that is not finite -> number of its operation

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow what is computed within."""
        callback: Callable[..., None] = self._after_operation
        op_callbacks.add_op_callback(callback)
        try:
            yield
        finally:
            op_callbacks.remove_op_callback(callback)

    def first_cause(self, results: Collection[tf.Tensor]) -> Operation | None:
        """Return the earliest operation that makes one of these results not finite; of all if none is traced.

        Infinity that an operation on the way makes harmless, as where a logarithm of 0 is not selected, is no cause.
        """
        waiting = [self._useless[id(result)] for result in results if id(result) in self._useless]
        waiting = waiting or list(range(len(self.operations)))
        reached = set(waiting)
        while waiting:
            causes = [number for number in self.operations[waiting.pop()].causes if number not in reached]
            reached.update(causes)
            waiting += causes
        roots = [number for number in reached if not self.operations[number].causes]
        return self.operations[min(roots)] if roots else None

    def _after_operation(
        self,
        op_type: str | bytes,
        inputs: Sequence[Any],
        attrs: Any,
        outputs: Sequence[Any],
        op_name: str | None = None,
        graph: Any = None,
    ) -> None:
        if graph is not None:
            return
        kind = op_type.decode() if isinstance(op_type, bytes) else op_type
        place = self._place(inputs)
        for output in outputs:
            if not _is_float(output):
                continue
            self._keep(output)
            self._places[id(output)] = place
            if kind in ("ReadVariableOp", "Identity") and id(inputs[0]) in self._names:
                self._names[id(output)] = self._names[id(inputs[0])]
            if bool(tf.reduce_all(tf.math.is_finite(output))):
                continue
            operands = [Operand(self._name(x), x.numpy()) for x in inputs if _is_float(x)]
            operands += [
                Operand(self._names[id(x)], np.zeros(0)) for x in inputs if id(x) in self._names and _is_handle(x)
            ]
            causes = sorted({self._useless[id(x)] for x in inputs if id(x) in self._useless})
            self._useless[id(output)] = len(self.operations)
            self.operations.append(Operation(place, kind, self.part, output.numpy(), operands, causes))

    def _place(self, inputs: Sequence[Any]) -> str:
        """Return the layer of an operation; in the backward pass that of the tensors of the forward pass it reads."""
        if self.part == FORWARD:
            return _FUNCTIONAL.sub("image/backbone", tf.get_current_name_scope())
        places = [self._places[id(x)] for x in inputs if id(x) in self._places]
        return max(places, key=len, default="")

    def _keep(self, tensor: Any, name: str = "") -> None:
        self._kept.append(tensor)
        if name:
            self._names[id(tensor)] = name

    def _name(self, tensor: Any) -> str:
        return self._names.get(id(tensor)) or self._places.get(id(tensor)) or "an earlier result"


def largest(values: NDArray[Any]) -> float:
    """Return the largest finite number, without its sign; 0 without numbers."""
    sizes = np.abs(values.astype(np.float64))
    return float(np.max(sizes, initial=0.0, where=np.isfinite(sizes)))


def _is_float(tensor: Any) -> bool:
    return isinstance(tensor, tf.Tensor) and tensor.dtype.is_floating


def _is_handle(tensor: Any) -> bool:
    return isinstance(tensor, tf.Tensor) and tensor.dtype == tf.resource
