"""Where a training stands in its data."""

from __future__ import annotations

import tensorflow as tf

from easyrec_mm.data.input import Input
from easyrec_mm.runs.checkpoint import checkpoint_shapes, restore

# Names within a checkpoint; older checkpoints count batches.
_GROUPS_READ, _BATCHES_READ = "progress/groups_read", "progress/batches_read"
_FINGERPRINT = "progress/input_fingerprint"


class DataPosition:
    """The number of groups that a training has read, and the fingerprint of the data in which it counts them.

    Args:
      inputs: the training data.
    """

    def __init__(self, inputs: Input) -> None:
        self._input = inputs
        self._groups_read = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._fingerprint = tf.Variable(inputs.fingerprint(), dtype=tf.int64, trainable=False)

    @property
    def groups_read(self) -> int:
        """Return the number of groups read."""
        return int(self._groups_read)

    def add(self, num_groups: int) -> None:
        """Count the groups of a batch."""
        self._groups_read.assign_add(num_groups)

    def variables(self) -> dict[str, tf.Variable]:
        """Return what a checkpoint contains, by name."""
        return {_GROUPS_READ: self._groups_read, _FINGERPRINT: self._fingerprint}

    def restore(self, path: str) -> bool:
        """Go to the position of a checkpoint if the data are those that it was trained on, else to their start.

        Returns:
          Whether the data are the same.

        Raises:
          CheckpointError: if the checkpoint contains no position, or cannot be read.
        """
        counts_batches = _BATCHES_READ in checkpoint_shapes(path)
        saved = tf.Variable(0, dtype=tf.int64, trainable=False)
        restore(path, {_BATCHES_READ if counts_batches else _GROUPS_READ: self._groups_read, _FINGERPRINT: saved})
        is_same = int(saved) == self._input.fingerprint(with_contents=not counts_batches)
        if counts_batches:
            self._groups_read.assign(self._groups_read * self._input.batch_size)
        if not is_same:
            self._groups_read.assign(0)
        return is_same
