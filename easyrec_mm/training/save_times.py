"""The times at which a training writes checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable

from easyrec_mm.protos.train_pb2 import TrainConfig


class SaveTimes:
    """The times that save_checkpoints_steps, save_checkpoints_epochs and save_checkpoints_secs set.

    Args:
      config: the train_config section.
      clock: function that returns the time in seconds.
    """

    def __init__(self, config: TrainConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._epochs = config.save_checkpoints_epochs
        by_steps = config.HasField("save_checkpoints_steps") or not self._epochs
        self._steps = config.save_checkpoints_steps if by_steps else 0
        self._seconds = config.save_checkpoints_secs
        self._clock = clock
        self._saved_s = clock()
        self._epochs_done: int | None = None  # at the last step

    def is_due(self, step: int, epochs_before: int, epochs_done: int) -> bool:
        """Return whether to save after a step; for every step, in order.

        Args:
          step: the number of the step.
          epochs_before: number of epochs that were over before its batch.
          epochs_done: number of epochs that are over with its batch, which may end one epoch and begin the next.
        """
        if self._epochs_done is not None:
            epochs_before = self._epochs_done  # a batch without samples, which is not a step, may have ended an epoch
        self._epochs_done = epochs_done
        if self._epochs and epochs_done // self._epochs > epochs_before // self._epochs:
            return True
        if self._seconds and self._clock() - self._saved_s >= self._seconds:
            return True
        return bool(self._steps) and step % self._steps == 0

    def saved(self) -> None:
        """Note that a checkpoint was saved, and count seconds from now on."""
        self._saved_s = self._clock()

    def num_left(self, step: int, num_steps: int, steps_per_epoch: float | None, seconds_left: float) -> int:
        """Estimate how many checkpoints follow after a step, including the last one of the training."""
        num = 1
        if self._steps:
            num += max(0, (num_steps - 1) // self._steps - step // self._steps)
        if self._epochs and steps_per_epoch:
            every = self._epochs * steps_per_epoch
            num += max(0, int((num_steps - 1) / every) - int(step / every))
        if self._seconds:
            num += int(seconds_left / self._seconds)
        return num
