"""The rows of embedding tables that steps change: noted for checkpoints that contain only these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.distribution.shards import rows_of_each
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
      tables: the tables, with the variables whose rows change together with theirs; the same on all workers.
      counts_changes: whether to note the rows that have changed since the last checkpoint.
      streamed: the tables that are copied between steps, the same on all workers; see streamed_tables.
      is_first: whether this is the first worker, which writes whole tables; each worker writes its part of others.

    Attributes:
      tables: as above.
      streamed: those of which this worker writes rows; steps return their old rows from `record` to `record_no_more`.
      is_meanwhile: whether a worker copies tables between steps, so that all write while the training goes on.
    """

    def __init__(
        self, tables: Sequence[Table], counts_changes: bool, streamed: Sequence[Table] = (), is_first: bool = True
    ) -> None:
        self.tables, self.is_meanwhile = list(tables), bool(streamed)
        self._own = [table for table in tables if is_first or table.shard is not None]
        own = {table.name for table in self._own if table.num_rows}
        self.streamed = [table for table in streamed if table.name in own]
        self._is_recording = tf.Variable(False, trainable=False)
        self._has_changed = {table.name: _flags(table) for table in self._own if counts_changes}
        self._is_recorded = {table.name: _flags(table) for table in self.streamed}

    def before_update(self, gradients: Mapping[str, Gradient]) -> Changed:
        """Note the rows that an update by these gradients changes; part of the graph of a step.

        Args:
          gradients: gradients by the names of the variables.

        Returns:
          While old rows are recorded, the rows of streamed tables that have not been returned yet, and what they are
          before the update; otherwise no rows.
        """
        rows = {table.name: _changed_rows(table, gradients.get(table.name)) for table in self._own}
        for name, has_changed in self._has_changed.items():
            if (ids := rows[name]) is not None:
                _set(has_changed, ids, True)
        return {table.name: self._old(table, ids) for table in self.streamed if (ids := rows[table.name]) is not None}

    def take_changed(self) -> dict[str, NDArray[np.int64]]:
        """Return the rows that have changed since the last call, ascending, by table that this worker writes."""
        rows = {}
        for name, has_changed in self._has_changed.items():
            rows[name] = tf.where(has_changed).numpy()[:, 0]
            _set(has_changed, tf.constant(rows[name]), False)
        return rows

    @property
    def is_recording(self) -> bool:
        """Return whether steps return old rows."""
        return bool(self._is_recording)

    def record(self) -> None:
        """Let steps return old rows, those of each row once."""
        for is_recorded in self._is_recorded.values():
            is_recorded.assign(tf.zeros_like(is_recorded))
        self._is_recording.assign(True)

    def record_no_more(self) -> None:
        """Let steps return no old rows."""
        self._is_recording.assign(False)

    def _old(self, table: Table, ids: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        is_recorded = self._is_recorded[table.name]

        def gathered(ids: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            return ids, {name: tf.gather(variable, ids) for name, variable in table.variables.items()}

        def recorded() -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            # Most rows of a batch are frequent ones, which have been returned before.
            first = tf.boolean_mask(ids, ~tf.gather(is_recorded, ids))
            _set(is_recorded, first, True)
            return gathered(first)

        old: tuple[tf.Tensor, dict[str, tf.Tensor]] = tf.cond(self._is_recording, recorded, lambda: gathered(ids[:0]))
        return old


def _flags(table: Table) -> tf.Variable:
    """Return a flag for each row, in one byte, so that setting it costs next to nothing."""
    return tf.Variable(tf.zeros([table.num_rows], tf.bool), trainable=False)


def _set(flags: tf.Variable, rows: tf.Tensor, value: bool) -> None:
    flags.scatter_update(tf.IndexedSlices(tf.fill(tf.shape(rows), value), rows))


def streamed_tables(tables: Sequence[Table], num_workers: int) -> list[Table]:
    """Return the tables that are copied between steps: large ones, if they take a while to write.

    What the first of the workers writes decides, which is at least as much as any other one writes.
    """
    sizes = {table.name: _rows_of_first(table, num_workers) * table.row_bytes for table in tables}
    large = [table for table in tables if sizes[table.name] >= LARGE_TABLE_BYTES]
    return large if sum(sizes[table.name] for table in large) >= LARGE_TABLES_BYTES else []


def _rows_of_first(table: Table, num_workers: int) -> int:
    return table.num_rows if table.shard is None else rows_of_each(table.shard.num_rows, num_workers)


def _changed_rows(table: Table, gradient: Gradient) -> tf.Tensor | None:
    """Return the distinct rows of a table that an update by its gradient changes; None if it has none."""
    if gradient is None or isinstance(gradient, tf.IndexedSlices):
        return None if gradient is None else gradient.indices
    return tf.range(table.num_rows)
