"""The number of steps and epochs of a training."""

from __future__ import annotations

from dataclasses import dataclass

from easyrec_mm.data.input import Input
from easyrec_mm.errors import DataError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


@dataclass(frozen=True)
class Length:
    """The length of a training.

    num_steps        number of steps at its end; None if it has no end
    num_epochs       how often the data are read at most; 0 for no limit
    steps_per_epoch  number of steps per epoch; None if the data were not counted
    is_exact         whether num_steps is exact rather than estimated from a part of the data
    """

    num_steps: int | None
    num_epochs: int
    steps_per_epoch: float | None
    is_exact: bool

    def describe(self) -> str:
        """Return the length as text, such as "484 steps, 3 epochs of 161.3 steps"."""
        about = "" if self.is_exact else "about "
        parts = ["no end" if self.num_steps is None else f"{about}{self.num_steps:,} steps"]
        if self.steps_per_epoch:
            epochs = f"{self.num_epochs:,} epochs" if self.num_epochs != 1 else "one epoch"
            size = f"{about}{self.steps_per_epoch:,.2f}".removesuffix("0").removesuffix(".0") + " steps"
            parts.append(f"{epochs} of {size}" if self.num_epochs else f"an epoch has {size}")
        return ", ".join(parts)


def training_length(config: EasyRecConfig, inputs: Input, step: int, groups_read: int) -> Length:
    """Return the length of a training that has done `step` steps with the first `groups_read` groups of its data.

    Batches whose samples are all bad are counted as steps, too, because they are recognised only when they are read.

    Raises:
      DataError: if a file cannot be read, or no batch is full although drop_remainder demands it.
    """
    limit = config.train_config.num_steps or None
    num_epochs = config.train_config.num_epochs or config.data_config.num_epochs
    if not (num_epochs or inputs.source.counts_at_once):
        return Length(limit, 0, None, is_exact=True)
    num_groups, is_exact = inputs.estimate_groups()
    steps_per_epoch = inputs.batches_per_epoch(num_groups)
    if not num_epochs:
        return Length(limit, 0, steps_per_epoch, is_exact=True)
    # Counted from the current position, because data that have changed are read from their start.
    end = step + inputs.num_batches(max(0, num_groups * num_epochs - groups_read))
    if is_exact and not end:
        raise DataError(
            f"data_config.drop_remainder: no batch is full: {num_groups * num_epochs} groups, and batches of "
            f"{inputs.global_batch_size}; lower batch_size, or set drop_remainder to false"
        )
    if limit is not None and limit <= end:
        return Length(limit, num_epochs, steps_per_epoch, is_exact=True)
    return Length(end, num_epochs, steps_per_epoch, is_exact)
