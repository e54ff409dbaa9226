"""Where a training stands in its data.

If each worker reads files of its own, the groups that all have read determine the place at which each stands in its
files, because they stand at the same one; see DividedEpoch.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import tensorflow as tf

from easyrec_mm.data.batch import InputBatch
from easyrec_mm.data.input import Input
from easyrec_mm.errors import ConfigError
from easyrec_mm.files.folders import shown
from easyrec_mm.runs.checkpoint_reader import checkpoint_shapes, restore

# Names within a checkpoint; older checkpoints count batches, or do not know the size of an epoch.
_GROUPS_READ, _BATCHES_READ = "progress/groups_read", "progress/batches_read"
_EPOCH_SIZE = "progress/epoch_size"
_FINGERPRINT = "progress/input_fingerprint"
# With this many rows in a batch, the order of flat rows was chosen; not in older ones.
_FLAT_BATCH = "progress/flat_batch"
# Without the order of the groups, and the number of workers that read files of their own: these are not in older ones.
_FILES, _NUM_WITH_OWN_FILES = "progress/files_fingerprint", "progress/num_with_own_files"


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
        self._own_flat_batch = inputs.source.order.flat_batch
        self._flat_batch = tf.Variable(self._own_flat_batch, dtype=tf.int64, trainable=False)
        self._files = tf.Variable(inputs.fingerprint(with_order=False), dtype=tf.int64, trainable=False)
        num_workers = inputs.own_files.num_workers if inputs.own_files else 0
        self._num_with_own_files = tf.Variable(num_workers, dtype=tf.int64, trainable=False)

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
        return {
            _GROUPS_READ: self._groups_read,
            _EPOCH_SIZE: self._epoch_size,
            _FINGERPRINT: self._fingerprint,
            _FLAT_BATCH: self._flat_batch,
            _FILES: self._files,
            _NUM_WITH_OWN_FILES: self._num_with_own_files,
        }

    def restore(self, path: str) -> bool:
        """Go to the position of a checkpoint if the data are those that it was trained on, else to their start.

        Flat rows keep the order of the checkpoint, although another number of rows in a batch would choose another.

        Returns:
          Whether the data are the same.

        Raises:
          CheckpointError: if the checkpoint contains no position, or cannot be read.
          ConfigError: if it is within an epoch that was divided among the workers in another way.
        """
        shapes = checkpoint_shapes(path)
        counts_batches = _BATCHES_READ in shapes
        saved = tf.Variable(0, dtype=tf.int64, trainable=False)
        restore(path, {_BATCHES_READ if counts_batches else _GROUPS_READ: self._groups_read, _FINGERPRINT: saved})
        self._epoch_size.assign(_read(path, shapes, _EPOCH_SIZE))
        is_kept = bool(self._own_flat_batch) and _FLAT_BATCH in shapes
        self._order_for(_read(path, shapes, _FLAT_BATCH) if is_kept else self._own_flat_batch)
        is_same = int(saved) == self._input.fingerprint(with_contents=not counts_batches)
        if counts_batches:
            self._groups_read.assign(self._groups_read * self._input.batch_size)
        num_with_own_files = _read(path, shapes, _NUM_WITH_OWN_FILES)
        if num_with_own_files != int(self._num_with_own_files):
            # The order of the groups is another one in any case, and the next epoch may begin with it.
            is_same |= _FILES in shapes and _read(path, shapes, _FILES) == int(self._files)
            if is_same and self.place[1]:
                raise ConfigError(self._refusal(path, num_with_own_files))
        if not is_same:
            self._order_for(self._own_flat_batch)
            self._groups_read.assign(0)
            self._epoch_size.assign(0)
        return is_same

    def _order_for(self, flat_batch: int) -> None:
        """Read flat rows in the order that they have with that many in a batch."""
        if flat_batch != int(self._flat_batch):
            self._flat_batch.assign(flat_batch)
            self._input.source.order = replace(self._input.source.order, flat_batch=flat_batch)
            self._fingerprint.assign(self._input.fingerprint())

    def _refusal(self, path: str, num_with_own_files: int) -> str:
        def described(num: int) -> str:
            return f"{num} workers, each with files of its own" if num else "workers without files of their own"

        return (
            f"data_config.file_shard: {shown(path)} is of {described(num_with_own_files)}, within epoch "
            f"{self.place[0]}, and this training of {described(int(self._num_with_own_files))}, so that some groups "
            "would be read twice in this epoch and others not at all; go on as before, until a checkpoint at the end "
            "of an epoch (train_config.save_checkpoints_epochs: 1), or begin another model_dir with "
            "train_config.fine_tune_checkpoint"
        )


def _read(path: str, shapes: Container[str], name: str) -> int:
    """Return an integer of a checkpoint; 0 if it does not contain it."""
    value = tf.Variable(0, dtype=tf.int64, trainable=False)
    if name in shapes:
        restore(path, {name: value})
    return int(value)
