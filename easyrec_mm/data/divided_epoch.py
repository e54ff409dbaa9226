"""An epoch in which each worker reads files of its own (`data_config.file_shard`), and all do the same steps.

The worker with the most groups determines the number of steps; the others have empty batches at the end of an epoch.
No batch is of two epochs. A place is an index in a worker's own groups, in the order in which it reads them; after
each step all workers stand at the same place, or behind their last group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class DividedEpoch:
    """The sizes of an epoch.

    num_groups  number of groups in each worker's files
    batch_size  number of groups in a batch of one worker
    drops_remainder
                whether each worker leaves out its last batch if that is smaller
    """

    num_groups: Sequence[int]
    batch_size: int
    drops_remainder: bool

    @cached_property
    def total(self) -> int:
        """Return the number of groups of all workers."""
        return sum(self.num_groups)

    def num_batches(self, place: int = 0) -> int:
        """Return the number of batches of each worker from a place to the end of the epoch."""
        left = max(self.num_groups) - place
        # At least one, with which the epoch ends, where an earlier batch size would have left more.
        return max(left // self.batch_size, min(place, 1)) if self.drops_remainder else -(-left // self.batch_size)

    def num_batches_of(self, num_groups: int) -> int:
        """Return the number of batches of each worker with the last `num_groups` groups of several epochs."""
        epochs, rest = divmod(num_groups, self.total)
        return epochs * self.num_batches() + (self.num_batches(self.place(self.total - rest)) if rest else 0)

    def num_read(self, place: int) -> int:
        """Return how many groups the workers have read when they stand at a place."""
        return sum(min(number, place) for number in self.num_groups)

    def place(self, num_read: int) -> int:
        """Return the place at which the workers stand when they have read so many groups, less than all."""
        place, before = 0, 0
        # Up to the size of the smallest worker all read on, from there on one fewer, and so on.
        for num_left, number in zip(range(len(self.num_groups), 0, -1), sorted(self.num_groups), strict=True):
            if num_read < before + (number - place) * num_left:
                return place + (num_read - before) // num_left
            before += (number - place) * num_left
            place = number
        return place

    def sizes_of_batches(self, place: int) -> list[int]:
        """Return the number of groups of all workers in each batch from a place to the end of the epoch.

        The last one counts the groups that are left out, too.
        """
        places = [place + i * self.batch_size for i in range(self.num_batches(place))]
        ends = [self.num_read(place) for place in places[1:]] + [self.total]
        return [end - self.num_read(first) for first, end in zip(places, ends, strict=True)]
