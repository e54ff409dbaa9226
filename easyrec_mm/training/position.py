"""Where a training stands in its data."""

from __future__ import annotations

import tensorflow as tf

from easyrec_mm.data.batch import InputBatch
from easyrec_mm.data.input import Input
from easyrec_mm.runs.checkpoint_reader import checkpoint_shapes, restore

# Names within a checkpoint; older checkpoints count batches, or do not know the size of an epoch.
_GROUPS_READ, _BATCHES_READ = "progress/groups_read", "progress/batches_read"
_EPOCH_SIZE = "progress/epoch_size"
_FINGERPRINT = "progress/input_fingerprint"


class DataPosition:
    """The number of groups that a training has read, and the fingerprint of the data in which it counts them.

    Args:
      inputs: the training data.
    """

    def __init__(self, inputs: Input) -> None:
        self._input = inputs
        self._groups_read = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._epoch_size = tf.Variable(0, dtype=tf.int64, trainable=False)  # 0 until an epoch is over
        self._fingerprint = tf.Variable(inputs.fingerprint(), dtype=tf.int64, trainable=False)

    @property
    def groups_read(self) -> int:
        """Return the number of groups read."""
        return int(self._groups_read)

    @property
    def place(self) -> tuple[int, int]:
        """Return the epoch in which the training goes on, and the number of groups to leave out from its start."""
        size = int(self._epoch_size)
        return divmod(self.groups_read, size) if size else (0, self.groups_read)

    def add(self, item: InputBatch) -> None:
        """Count the groups of a batch."""
        if item.epochs_done > item.epochs_before and not int(self._epoch_size):
            end_of_epoch = self.groups_read + item.num_of_first_epoch
            self._epoch_size.assign(end_of_epoch // (item.epochs_before + 1))
        self._groups_read.assign_add(item.num_groups)

    def variables(self) -> dict[str, tf.Variable]:
        """Return what a checkpoint contains, by name."""
        return {_GROUPS_READ: self._groups_read, _EPOCH_SIZE: self._epoch_size, _FINGERPRINT: self._fingerprint}

    def restore(self, path: str) -> bool:
        """Go to the position of a checkpoint if the data are those that it was trained on, else to their start.

        Returns:
          Whether the data are the same.

        Raises:
          CheckpointError: if the checkpoint contains no position, or cannot be read.
        """
        shapes = checkpoint_shapes(path)
        counts_batches = _BATCHES_READ in shapes
        saved = tf.Variable(0, dtype=tf.int64, trainable=False)
        restore(path, {_BATCHES_READ if counts_batches else _GROUPS_READ: self._groups_read, _FINGERPRINT: saved})
        if _EPOCH_SIZE in shapes:
            restore(path, {_EPOCH_SIZE: self._epoch_size})
        is_same = int(saved) == self._input.fingerprint(with_contents=not counts_batches)
        if counts_batches:
            self._groups_read.assign(self._groups_read * self._input.batch_size)
        if not is_same:
            self._groups_read.assign(0)
            self._epoch_size.assign(0)
        return is_same
