"""When a training writes a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable

from easyrec_mm.protos.train_pb2 import TrainConfig


class SaveTimes:
    """The times that save_checkpoints_steps, save_checkpoints_epochs and save_checkpoints_secs set.

    Args:
      config: the training section.
      clock: seconds.
    """

    def __init__(self, config: TrainConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._epochs = config.save_checkpoints_epochs
        by_steps = config.HasField("save_checkpoints_steps") or not self._epochs
        self._steps = config.save_checkpoints_steps if by_steps else 0
        self._seconds = config.save_checkpoints_secs
        self._clock = clock
        self._saved_s = clock()

    def is_due(self, step: int, epoch_before: int, epoch: int) -> bool:
        """Whether to save after a step; epochs, from 0, are those of the last batch before and of the step's own.

        A batch may hold the end of an epoch and the beginning of the next: the epoch is over with it.
        """
        if self._epochs and epoch // self._epochs > epoch_before // self._epochs:
            return True
        if self._seconds and self._clock() - self._saved_s >= self._seconds:
            return True
        return bool(self._steps) and step % self._steps == 0

    def saved(self) -> None:
        """Count seconds from now on."""
        self._saved_s = self._clock()

    def num_left(self, step: int, num_steps: int, steps_per_epoch: float | None, seconds_left: float) -> int:
        """About how many checkpoints follow after a step, the last one of the training among them."""
        num = 1
        if self._steps:
            num += max(0, (num_steps - 1) // self._steps - step // self._steps)
        if self._epochs and steps_per_epoch:
            every = self._epochs * steps_per_epoch
            num += max(0, int((num_steps - 1) / every) - int(step / every))
        if self._seconds:
            num += int(seconds_left / self._seconds)
        return num
