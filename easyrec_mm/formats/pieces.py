"""Pieces of files: the groups of which a task reads some, so that all tasks together read each group once.

The batches of a piece are those that one process makes of the whole file: they begin at the beginning of the file and
do not go on in the next one. Values that a model computes depend, in their last bits, on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from easyrec_mm.tasks import Task

# A file is divided if it is larger than this part of what a task reads on average.
_WHOLE_FILES_PER_TASK = 8
TO_END = -1


class Piece(NamedTuple):
    """Consecutive groups of a file: its index in `Source.files`, the first group, from 0, and the one after the last,
    or TO_END.
    """

    file: int
    first: int = 0
    end: int = TO_END


def divide(sizes: Sequence[int], count: Callable[[Sequence[int]], int], task: Task, batch_size: int) -> list[Piece]:
    """Return the pieces that a task reads: those of all tasks, one behind the other, are all files in their order.

    Many files are divided by their sizes, and only the task that reads a file opens it. Otherwise the batches are
    divided, for which every task counts the groups of all files.

    Args:
      sizes: size of each file, in any unit.
      count: returns the number of groups in the files with some indices.
      task: the task.
      batch_size: number of groups in a batch.
    """
    if task.num == 1:
        return [Piece(file) for file in range(len(sizes))]
    if max(sizes) * task.num * _WHOLE_FILES_PER_TASK <= sum(sizes):
        return [Piece(file) for file, owner in enumerate(_owners(sizes, task.num)) if owner == task.index]
    pieces = []
    num_batches = [-(-count([file]) // batch_size) for file in range(len(sizes))]
    own = task.part_of(sum(num_batches))
    start = 0
    for file, num in enumerate(num_batches):
        first, end = max(own.start - start, 0), min(own.stop - start, num)
        if first < end:
            pieces.append(Piece(file, first * batch_size, TO_END if end == num else end * batch_size))
        start += num
    return pieces


def _owners(sizes: Sequence[int], num_tasks: int) -> list[int]:
    """Return the task of each file: the one in whose part of all bytes the middle of the file lies."""
    owners, before, total = [], 0, max(sum(sizes), 1)
    for size in sizes:
        owners.append(min((2 * before + size) * num_tasks // (2 * total), num_tasks - 1))
        before += size
    return owners
