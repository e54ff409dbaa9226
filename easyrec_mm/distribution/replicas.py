"""The replicas of a model that are trained together, and what they exchange: TensorFlow's collective operations.

Each worker is a process with one replica. All run the same functions on their own shares of a batch, and meet in the
operations here. With a single replica these do nothing, so that a function is written once for any number.

An operation is identified by the name of its scope and its place in it, which must be the same on all workers.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

# Number of operations that a scope may have: the other bits of their numbers are those of the scope.
_MOST_OPERATIONS = 1 << 12
_LARGEST_NUMBER = 2**31 - 1
_GROUP = 1
# Multiplies the size of what is exchanged, so that sizes of neighbouring operations have different numbers.
_PRIME = 1_000_003
# Bytes that a replica sends: by operation, and of tables' rows (sparse) or everything else (dense).
SENT_BYTES = ("sent_bytes_sum", "sent_bytes_gather", "sent_bytes_swap", "sent_bytes_dense", "sent_bytes_sparse")

# Elements of a tensor that is summed by an operation of its own.
_LARGE = 1 << 18


class Replicas:
    """The replicas of a training.

    Args:
      number: number of this replica, from 0.
      num: number of replicas.

    Attributes:
      number: as above.
      num: as above.
    """

    def __init__(self, number: int = 0, num: int = 1) -> None:
        self.number, self.num = number, num
        self._scope, self._num_operations = 0, 0
        self._is_present: tf.Tensor | bool = True
        self._sent: list[tuple[str, str, tf.Tensor]] = []  # names in SENT_BYTES, and bytes, of the scope's operations

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Number the operations within anew; each function that has operations needs a name of its own."""
        outer = self._scope, self._num_operations, self._sent
        self._scope, self._num_operations, self._sent = zlib.crc32(name.encode()), 0, []
        try:
            yield
        finally:
            self._scope, self._num_operations, self._sent = outer

    def sent_bytes(self) -> dict[str, tf.Tensor]:
        """Return the bytes that this replica sends in the operations so far of this scope; {} for a single replica.

        In a ring of N replicas, each sends 2 (N - 1) / N of a tensor to sum it, N - 1 times its part to gather it, and
        (N - 1) / N of what it swaps.
        An operation within a loop or a condition counts once if its size is known before, otherwise not at all.
        """
        if self.num == 1:
            return {}
        totals = dict.fromkeys(SENT_BYTES, tf.constant(0.0, tf.float64))
        for operation, kind, size in self._sent:
            known = tf.get_static_value(size)
            if known is None and size.graph is not totals["sent_bytes_sum"].graph:
                continue
            for name in (operation, kind):
                totals[name] += size if known is None else known
        return totals

    @contextmanager
    def present(self, is_present: tf.Tensor) -> Iterator[None]:
        """Count what `moments` sees within only if `is_present`: a replica without pictures encodes a blank one."""
        outer, self._is_present = self._is_present, is_present
        try:
            yield
        finally:
            self._is_present = outer

    def moments(self, values: tf.Tensor, axes: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return mean and biased variance over these axes of the values of all replicas, float32, and their number."""
        values, weight = tf.cast(values, tf.float32), tf.cast(self._is_present, tf.float32)
        number = self.sum(weight * tf.cast(tf.reduce_prod(tf.gather(tf.shape(values), axes)), tf.float32))
        mean = tf.math.divide_no_nan(self.sum(weight * tf.reduce_sum(values, axes)), number)
        deviations = tf.reduce_sum(tf.math.squared_difference(values, mean), axes)
        return mean, tf.math.divide_no_nan(self.sum(weight * deviations), number), number

    def sum(self, values: tf.Tensor) -> tf.Tensor:
        """Return the sum over the replicas of a tensor of equal shape on each; gradients are summed as well."""
        return self._sum(values) if self.num > 1 else values

    def sum_each(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the sums over the replicas of tensors, the small ones of a dtype in one operation; without gradients.

        Large ones are not copied into one, and are summed while the backward pass computes others.
        """
        if self.num == 1:
            return list(tensors)
        sums: list[tf.Tensor] = list(tensors)
        large = {i for i, tensor in enumerate(tensors) if (tensor.shape.num_elements() or 0) >= _LARGE}
        for i in sorted(large):
            sums[i] = self._reduced(tensors[i])
        for dtype in sorted({tensor.dtype.name for i, tensor in enumerate(tensors) if i not in large}):
            places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype and i not in large]
            flat = self._reduced(tf.concat([tf.reshape(tensors[i], [-1]) for i in places], 0))
            sizes = [tf.size(tensors[i]) for i in places]
            for i, part in zip(places, tf.split(flat, sizes), strict=True):
                sums[i] = tf.reshape(part, tf.shape(tensors[i]))
        return sums

    def gather(self, rows: tf.Tensor, is_sparse: bool = False) -> tf.Tensor:
        """Return the rows of all replicas in their order, `[sum of N, ...]`, for rows `[N, ...]` with an N of its own.

        The gradient of a replica's rows is the sum of those that all replicas have for them.

        Args:
          rows: the rows.
          is_sparse: whether they belong to rows of tables, for `sent_bytes`.
        """
        return self._gather(rows, is_sparse) if self.num > 1 else rows

    def gather_equal(self, values: tf.Tensor) -> tf.Tensor:
        """Return what the replicas have, one behind the other, for a tensor of equal shape on each; no gradients."""
        return self._gathered(values) if self.num > 1 else values

    def swap(self, values: tf.Tensor) -> tf.Tensor:
        """Return what each replica has for this one, `[num, ...]`, for what this one has for each; no gradients.

        The shape must be equal on all replicas.
        """
        if self.num == 1:
            return values
        self._count("sent_bytes_swap", "sent_bytes_sparse", values, (self.num - 1) / self.num)
        return tf.raw_ops.CollectiveAllToAllV2(input=values, **self._operation(tf.shape(values)))

    def agree(self, *numbers: float) -> list[float]:
        """Return the sums over the replicas of numbers of this process; all call it at the same points of the loop."""
        if self.num == 1:
            return list(numbers)
        with self.scope("agree"):
            return list(self._reduced(tf.constant(numbers, tf.float64)).numpy())

    def first_says(self, flag: bool) -> bool:
        """Return the flag of the first replica; all call it at the same points of the loop."""
        return bool(self.agree(flag and not self.number)[0])

    def contents(self, content: bytes) -> list[bytes]:
        """Return the bytes that all replicas give, in their order; all call it at the same points of the loop."""
        if self.num == 1:
            return [content]
        # In whole words, at least one: TensorFlow crashes on nothing.
        words = np.frombuffer(content + bytes(8 - len(content) % 8), np.int64)
        with self.scope("contents"):
            lengths = self._gathered(tf.constant([len(content)], tf.int64)).numpy().tolist()
            together = bytes(self._gather(tf.constant(words)).numpy())
        starts = itertools.accumulate((8 * (length // 8 + 1) for length in lengths), initial=0)
        return [together[start : start + length] for start, length in zip(starts, lengths, strict=False)]

    def texts(self, text: str) -> list[str]:
        """Return the texts of all replicas, in their order; all call it at the same points of the loop."""
        return [content.decode() for content in self.contents(text.encode())]

    def _sum(self, values: tf.Tensor) -> tf.Tensor:
        def summed(values: tf.Tensor) -> tuple[tf.Tensor, object]:
            return self._reduced(values), self._reduced

        result: tf.Tensor = tf.custom_gradient(summed)(values)
        return result

    def _gather(self, rows: tf.Tensor, is_sparse: bool = False) -> tf.Tensor:
        sizes = self._gathered(tf.shape(rows)[:1], is_sparse)  # [num]
        most = rounded(tf.reduce_max(sizes))
        is_there = tf.reshape(tf.sequence_mask(sizes, most), [-1])
        first = self.number * most

        def gathered(rows: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            result = tf.boolean_mask(self._gathered(_padded(rows, most), is_sparse), is_there)

            def gradient(of_all: tf.Tensor) -> tf.Tensor:
                shape = tf.concat([[self.num * most], tf.shape(of_all)[1:]], 0)
                spread = tf.scatter_nd(tf.where(is_there), of_all, tf.cast(shape, tf.int64))
                return self._reduced(spread)[first : first + tf.shape(rows)[0]]

            return result, gradient

        result: tf.Tensor = tf.custom_gradient(gathered)(rows)
        return result

    def _reduced(self, values: tf.Tensor) -> tf.Tensor:
        self._count("sent_bytes_sum", "sent_bytes_dense", values, 2 * (self.num - 1) / self.num)
        return tf.raw_ops.CollectiveReduceV2(
            input=values, merge_op="Add", final_op="Id", **self._operation(tf.shape(values))
        )

    def _gathered(self, values: tf.Tensor, is_sparse: bool = False) -> tf.Tensor:
        self._count("sent_bytes_gather", "sent_bytes_sparse" if is_sparse else "sent_bytes_dense", values, self.num - 1)
        return tf.raw_ops.CollectiveGatherV2(input=values, **self._operation(tf.shape(values)))

    def _count(self, operation: str, kind: str, values: tf.Tensor, times: float) -> None:
        """Count an operation that sends a tensor that often; within functions only, where a step consists of them."""
        if not tf.executing_eagerly():
            size = tf.cast(tf.size(values), tf.float64) * (times * values.dtype.size)
            self._sent.append((operation, kind, size))

    def _operation(self, shape: tf.Tensor) -> dict[str, Any]:
        """Return the inputs and attributes by which the workers find the same operation.

        TensorFlow remembers the shape of an operation by its number, so that each shape needs a number of its own.
        """
        if not self._scope:
            raise ValueError("a collective operation needs a scope")
        place = self._scope * _MOST_OPERATIONS + self._num_operations
        self._num_operations += 1
        size = tf.cast(tf.reduce_prod(shape), tf.int64)
        number = tf.math.floormod(place + size * _PRIME, _LARGEST_NUMBER)
        return {
            "group_size": self.num, "group_key": _GROUP, "instance_key": tf.cast(number, tf.int32),
            "ordering_token": [], "communication_hint": "auto", "timeout_seconds": 0.0,
        }  # fmt: skip


def rounded(number: tf.Tensor) -> tf.Tensor:
    """Return a number of rows, at least 1, that is at least as large, one of few: four between two powers of two."""
    number = tf.maximum(number, 1)
    power = tf.cast(tf.math.ceil(tf.math.log(tf.cast(number, tf.float64)) / math.log(2.0)), tf.int32)
    step = tf.bitwise.left_shift(1, tf.maximum(power - 3, 0))
    return tf.math.floordiv(number + step - 1, step) * step


def _padded(rows: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Return rows with as many zeros behind them as make that number of rows."""
    return tf.pad(rows, [[0, number - tf.shape(rows)[0]], *([[0, 0]] * (rows.shape.rank - 1))])
