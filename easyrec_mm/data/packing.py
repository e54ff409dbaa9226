"""Packs many small tensors into a few, because the overhead of a tensor costs more than its numbers.

A batch of a small config has forty tensors of a kilobyte each. Cutting them out of a chunk one by one, and passing them
to Python one by one, took most of the time of reading; tensors of the same kind are therefore cut and passed as one.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class Packing:
    """Packs a nest of tensors of S samples.

    Tensors `[S]` of the same dtype become one tensor `[n, S]`, tensors `[S, width]` one tensor `[S, sum of widths]`;
    ragged tensors and texts stay as they are.

    Args:
      specs: nest of the specs of the tensors.
    """

    def __init__(self, specs: Any) -> None:
        self.specs = specs
        self._members: dict[str, list[int]] = {}
        for index, spec in enumerate(tf.nest.flatten(specs)):
            self._members.setdefault(_kind(spec), []).append(index)

    def pack(self, values: Any) -> dict[str, Any]:
        """Return the packs of a nest by kind."""
        flat = tf.nest.flatten(values)
        packs: dict[str, Any] = {}
        for kind, indices in self._members.items():
            members = tuple(flat[index] for index in indices)  # a list would become one tensor in a dataset
            if kind != _ALONE:
                packs[kind] = tf.stack(members) if _is_stacked(kind) else tf.concat(members, 1)
            else:
                packs[kind] = members
        return packs

    def cut(self, packs: dict[str, Any], limits: tf.Tensor) -> dict[str, Any]:
        """Return the packs of the samples from `limits[0]` to before `limits[1]`."""
        begin, size = limits[:1], limits[1:] - limits[:1]
        parts: dict[str, Any] = {}
        for kind, pack in packs.items():
            if kind == _ALONE:
                parts[kind] = cut(pack, limits)
            else:
                place = ([0], begin) if _is_stacked(kind) else (begin, [0])
                shape = ([-1], size) if _is_stacked(kind) else (size, [-1])
                parts[kind] = tf.raw_ops.Slice(input=pack, begin=tf.concat(place, 0), size=tf.concat(shape, 0))
        return parts

    def unpack(self, packs: dict[str, Any]) -> Any:
        """Return the nest from its packs."""
        specs = tf.nest.flatten(self.specs)
        flat: list[Any] = [None] * len(specs)
        for kind, indices in self._members.items():
            if kind == _ALONE:
                members = packs[kind]
            elif _is_stacked(kind):
                members = tf.raw_ops.Unpack(value=packs[kind], num=len(indices))
            else:
                members = tf.split(packs[kind], [specs[index].shape[1] for index in indices], 1)
            for index, member in zip(indices, members, strict=True):
                flat[index] = member
        return tf.nest.pack_sequence_as(self.specs, flat)


def cut(values: Any, limits: tf.Tensor) -> Any:
    """Return rows `limits[0]` to before `limits[1]` of every tensor in a nest: `[N, ...]`, or `[N, (ragged), ...]`."""
    begin, size = limits[:1], limits[1:] - limits[:1]

    def cut_one(tensor: tf.Tensor | tf.RaggedTensor) -> tf.Tensor | tf.RaggedTensor:
        if not isinstance(tensor, tf.RaggedTensor):
            inner = tensor.shape.rank - 1
            place, shape = (begin, [0] * inner), (size, [-1] * inner)
            return tf.raw_ops.Slice(input=tensor, begin=_joined(place), size=_joined(shape))
        splits = tf.raw_ops.Slice(input=tensor.row_splits, begin=begin, size=size + 1)
        parts = cut(tensor.flat_values, tf.stack([splits[0], splits[-1]]))
        return tf.RaggedTensor.from_row_splits(parts, splits - splits[0], validate=False)

    return tf.nest.map_structure(cut_one, values)


def _joined(parts: tuple[tf.Tensor, list[int]]) -> tf.Tensor:
    return tf.concat([parts[0], tf.constant(parts[1], tf.int64)], 0) if parts[1] else parts[0]


_ALONE = "alone"


def _kind(spec: Any) -> str:
    if isinstance(spec, tf.TensorSpec) and spec.dtype != tf.string:
        return f"{spec.dtype.name} {spec.shape.rank}"
    return _ALONE


def _is_stacked(kind: str) -> bool:
    return kind.endswith(" 1")
