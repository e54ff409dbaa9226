"""The moving average of weights that evaluation, prediction and export can use instead of the last weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.distribution.shards import mark_like
from easyrec_mm.runs.checkpoint_reader import CheckpointReader

_ROWS_AT_A_TIME = 1 << 20


class MovingAverage:
    """Exponential moving average of variables: average = decay * average + (1 - decay) * variable, after each step.

    In a table, only the rows of the batch are updated: an unused row keeps its value, so its average since the row's
    last use has a closed form, variable + (average - variable) * decay^steps, and is brought up to date when the row is
    used again or the average is read. The result is exactly the average over all steps.

    Args:
      named: variables by name.
      tables: names of the embedding tables among them.
      decay: decay per step.
    """

    def __init__(self, named: dict[str, keras.Variable], tables: Sequence[str], decay: float) -> None:
        self._named = named
        self._tables = list(tables)
        self._decay = decay
        self._averages = {name: tf.Variable(v.value, trainable=False) for name, v in named.items()}
        self._last_used = {
            name: tf.Variable(tf.zeros([named[name].shape[0]], tf.int32), trainable=False) for name in self._tables
        }
        for variables in (self._averages, self._last_used):
            for name, variable in variables.items():
                mark_like(variable, named[name].value)

    def named_variables(self) -> dict[str, tf.Variable]:
        """Return the variables that a checkpoint must contain, by name."""
        return {f"{name}/average": v for name, v in self._averages.items()} | {
            f"{name}/last_used": v for name, v in self._last_used.items()
        }

    def start_from_variables(self) -> None:
        """Restart the averages at the variables' current values."""
        for name, average in self._averages.items():
            average.assign(self._named[name].value)

    def go_on_from(
        self, reader: CheckpointReader, step: int, restored: Mapping[str, tuple[str, NDArray[np.int64] | None]]
    ) -> int:
        """Take over the averages of variables that were restored from a checkpoint; return for how many it has them.

        Args:
          reader: reads the checkpoint.
          step: its step, which is step 0 from now on.
          restored: variable -> its name there, and for each row of a table the row that it took, -1 for none; None for
            the same rows.
        """
        number, shapes = 0, reader.shapes
        for name, average in self._averages.items():
            source, rows = restored.get(name, ("", None))
            if f"{source}/average" not in shapes or (name in self._tables) != (f"{source}/last_used" in shapes):
                continue
            number += 1
            kept = {f"{source}/average": average}
            if name in self._tables:
                kept[f"{source}/last_used"] = self._last_used[name]
            for part, variable in kept.items():
                reader.read_into(part, variable, rows)
            if name in self._tables:
                # So that as many steps have passed since a row was used as in the checkpoint; new rows have their
                # weights as averages, whatever that number.
                self._last_used[name].assign_sub(tf.fill(tf.shape(self._last_used[name]), step))
        return number

    def __len__(self) -> int:
        """Return the number of averages."""
        return len(self._averages)

    def around(self, update: Callable[[], None], rows: dict[str, tf.Tensor], step: tf.Tensor) -> None:
        """Run `update`, which changes the variables, then move the averages.

        Args:
          update: applies the optimizers.
          rows: table name -> distinct ids of the rows that `update` changes.
          step: number of the current step, from 1.
        """
        before = {name: self._row_averages(name, ids, step - 1) for name, ids in rows.items()}
        with tf.control_dependencies(list(before.values())):
            update()
        for name, average in self._averages.items():
            if name not in self._last_used:
                average.assign_sub((1.0 - self._decay) * (average - self._named[name].value))
        for name, ids in rows.items():
            new = self._decay * before[name] + (1.0 - self._decay) * tf.gather(self._named[name].value, ids)
            self._averages[name].scatter_update(tf.IndexedSlices(new, ids))
            self._last_used[name].scatter_update(tf.IndexedSlices(tf.fill(tf.shape(ids), step), ids))

    def skip_step(self) -> None:
        """Leave the averages as they were before a step that changes no variable."""
        # The averages of rows that are not used move with the number of steps since their last use.
        for last_used in self._last_used.values():
            last_used.assign_add(tf.ones_like(last_used))

    def assign_to_variables(self, step: tf.Tensor) -> None:
        """Overwrite the variables with their averages after `step` steps."""
        for name, variable in self._named.items():
            if name in self._last_used:
                for start in range(0, variable.shape[0], _ROWS_AT_A_TIME):
                    ids = tf.range(start, min(start + _ROWS_AT_A_TIME, variable.shape[0]))
                    rows = self._row_averages(name, ids, step)
                    variable.value.scatter_update(tf.IndexedSlices(rows, ids))
            else:
                variable.assign(self._averages[name])

    def _row_averages(self, name: str, ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Return the averages of these rows after `step` steps, given that the rows were not used since last_used."""
        steps = tf.cast(tf.cast(step, tf.int32) - tf.gather(self._last_used[name], ids), tf.float32)
        value = tf.gather(self._named[name].value, ids)
        return value + (tf.gather(self._averages[name], ids) - value) * tf.pow(self._decay, steps)[:, None]
