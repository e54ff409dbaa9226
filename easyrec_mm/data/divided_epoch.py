"""An epoch in which each worker reads files of its own (`data_config.file_shard`), and all do the same steps.

The worker with the most groups determines the number of steps; the others have empty batches at the end of an epoch.
No batch is of two epochs. A place is an index in a worker's own groups, in the order in which it reads them; after
each step all workers stand at the same place, or behind their last group.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


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
        num_done = bisect_right(self._ascending, place)
        return self._sums[num_done] + (len(self._ascending) - num_done) * place

    def place(self, num_read: int) -> int:
        """Return the place at which the workers stand when they have read so many groups, less than all."""
        # The last worker that has read all its groups is the last one at whose end so many groups were read.
        num_done = bisect_right(self._ascending, num_read, key=self.num_read)
        return (num_read - self._sums[num_done]) // (len(self._ascending) - num_done)

    def sizes_of_batches(self, place: int) -> Iterator[int]:
        """Yield the number of groups of all workers in each batch from a place to the end of the epoch.

        The last one counts the groups that are left out, too.
        """
        num_read = self.num_read(place)
        for number in range(1, self.num_batches(place)):
            before, num_read = num_read, self.num_read(place + number * self.batch_size)
            yield num_read - before
        yield self.total - num_read

    @cached_property
    def _ascending(self) -> list[int]:
        return sorted(self.num_groups)

    @cached_property
    def _sums(self) -> list[int]:
        """Return the sums of the first 0, 1, ... of `_ascending`."""
        return list(accumulate(self._ascending, initial=0))
