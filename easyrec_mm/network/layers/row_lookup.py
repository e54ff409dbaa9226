"""Looks up rows in many tables at once: the time to compile a step, and to begin it, grows with its operations."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def look_up_rows(lookups: Sequence[tuple[tf.Variable, tf.Tensor]]) -> list[tf.Tensor]:
    """Return the rows of tables: float32 `[N, dim]` for each pair of a table `[rows, dim]` and ids int64 `[N]`.

    The gradient of a table is tf.IndexedSlices of all rows that are looked up in it; tf.GradientTape must watch it.
    """
    rows: list[tf.Tensor] = [None] * len(lookups)
    by_width: dict[int, list[int]] = {}
    for place, (table, _) in enumerate(lookups):
        by_width.setdefault(table.shape[1], []).append(place)
    for places in by_width.values():
        of_width = _rows_of_a_width([lookups[place] for place in places])
        for place, of_lookup in zip(places, of_width, strict=True):
            rows[place] = of_lookup
    return rows


def _rows_of_a_width(lookups: Sequence[tuple[tf.Variable, tf.Tensor]]) -> list[tf.Tensor]:
    """Return what `look_up_rows` returns, for tables of one width."""
    by_table: dict[int, list[int]] = {}
    for place, (table, _) in enumerate(lookups):
        by_table.setdefault(id(table), []).append(place)
    tables = [lookups[places[0]][0] for places in by_table.values()]
    # Several look-ups in one table in their order, in which TensorFlow would add up their gradients.
    order = [place for places in by_table.values() for place in places]
    ids = [joined([lookups[place][1] for place in places]) for places in by_table.values()]
    rows = split_like(_rows_of_distinct_tables(tables, ids), [lookups[place][1] for place in order])
    by_place = dict(zip(order, rows, strict=True))
    return [by_place[place] for place in range(len(lookups))]


def _rows_of_distinct_tables(tables: Sequence[tf.Variable], ids: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the rows of all tables, one behind the other: float32 `[sum of N, dim]`."""

    def look_up(*handles: tf.Tensor) -> tuple[tf.Tensor, object]:
        parts = zip(handles, ids, strict=True)
        rows = [tf.raw_ops.ResourceGather(resource=h, indices=of_table, dtype=tf.float32) for h, of_table in parts]

        def gradient(upstream: tf.Tensor) -> list[tf.IndexedSlices]:
            shapes = [tf.constant(table.shape.as_list(), tf.int64) for table in tables]
            return [tf.IndexedSlices(*parts) for parts in zip(split_like(upstream, ids), ids, shapes, strict=True)]

        return joined(rows), gradient

    # TensorFlow's own gradient would take eight operations for each table. Handles are given instead of variables,
    # which TensorFlow would read as a whole here; the optimizer's in-place update would then copy them.
    result: tf.Tensor = tf.custom_gradient(look_up)(*[table.handle for table in tables])
    return result


def joined(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return tensors one behind the other, along their first dimension."""
    return parts[0] if len(parts) == 1 else tf.concat(parts, 0)


def split_like(values: tf.Tensor, parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Split what is one behind the other along the first dimension, by the lengths of `parts`."""
    return [values] if len(parts) == 1 else list(tf.split(values, lengths(parts)))


def lengths(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the lengths of tensors `[N]`, int64 `[number of parts]`."""
    return tf.concat(tf.shape_n(parts, out_type=tf.int64), 0)
