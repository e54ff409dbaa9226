"""The rows of embedding tables that steps change: noted for checkpoints that contain only these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.runs.checkpoint_parts import Table
from easyrec_mm.runs.snapshot import Changed
from easyrec_mm.training.row_gradients import Gradient

# Tables of at least this many bytes, with their slots, are copied between steps while a checkpoint is written, if all
# of them together have at least as many as below, which are written in about half a second.
LARGE_TABLE_BYTES = 16 << 20
LARGE_TABLES_BYTES = 256 << 20


class ChangedRows:
    """Notes which rows of tables the steps change, and returns what they were before.

    Args:
      tables: the tables, with the variables whose rows change together with theirs.
      counts_changes: whether to note the rows that have changed since the last checkpoint.
      streamed: the tables whose old rows steps return while `is_recording`.

    Attributes:
      is_recording: whether steps return old rows; for graphs.
    """

    def __init__(self, tables: Sequence[Table], counts_changes: bool, streamed: Sequence[Table] = ()) -> None:
        self.tables, self.streamed = list(tables), list(streamed)
        self.is_recording = tf.Variable(False, trainable=False)
        # One byte a row, so that noting a row costs next to nothing.
        self._has_changed = {
            table.name: tf.Variable(tf.zeros([table.num_rows], tf.bool), trainable=False)
            for table in tables
            if counts_changes
        }

    def before_update(self, gradients: Mapping[str, Gradient]) -> Changed:
        """Note the rows that an update by these gradients changes; part of the graph of a step.

        Args:
          gradients: gradients by the names of the variables.

        Returns:
          The rows of streamed tables and what they are before the update, or no rows unless `is_recording`.
        """
        rows = {table.name: _changed_rows(table, gradients.get(table.name)) for table in self.tables}
        for name, has_changed in self._has_changed.items():
            if (ids := rows[name]) is not None:
                has_changed.scatter_update(tf.IndexedSlices(tf.fill(tf.shape(ids), True), ids))
        return {table.name: self._old(table, ids) for table in self.streamed if (ids := rows[table.name]) is not None}

    def take_changed(self) -> dict[str, NDArray[np.int64]]:
        """Return the rows that have changed since the last call, ascending, by table."""
        rows = {}
        for name, has_changed in self._has_changed.items():
            rows[name] = tf.where(has_changed).numpy()[:, 0]
            has_changed.scatter_update(tf.IndexedSlices(tf.fill([len(rows[name])], False), rows[name]))
        return rows

    def _old(self, table: Table, ids: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        def gathered(ids: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            return ids, {name: tf.gather(variable, ids) for name, variable in table.variables.items()}

        old: tuple[tf.Tensor, dict[str, tf.Tensor]] = tf.cond(
            self.is_recording, lambda: gathered(ids), lambda: gathered(ids[:0])
        )
        return old


def streamed_tables(tables: Sequence[Table], num_workers: int) -> list[Table]:
    """Return the tables that are copied between steps: large ones, if they take a while to write.

    Several workers write at once, because the others would wait for the one that writes anyway.
    """
    large = [table for table in tables if table.num_rows * table.row_bytes >= LARGE_TABLE_BYTES]
    num_bytes = sum(table.num_rows * table.row_bytes for table in large)
    return large if num_bytes >= LARGE_TABLES_BYTES and num_workers == 1 else []


def _changed_rows(table: Table, gradient: Gradient) -> tf.Tensor | None:
    """Return the distinct rows of a table that an update by its gradient changes; None if it has none."""
    if gradient is None or isinstance(gradient, tf.IndexedSlices):
        return None if gradient is None else gradient.indices
    return tf.range(table.num_rows)
