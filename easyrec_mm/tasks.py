"""Tasks: processes, on any machines, that divide one piece of work and know of each other only their number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One of several tasks.

    index  number of this task, from 0
    num    number of all tasks
    """

    index: int
    num: int

    def part_of(self, count: int) -> range:
        """Return the places, of `count` places from 0, of this task: consecutive ones, and each of one task."""
        return range(count * self.index // self.num, count * (self.index + 1) // self.num)

    def file_name(self, stem: str, ending: str) -> str:
        """Return the name of this task's file, such as part-00003-of-00008.parquet; the names sort like the tasks."""
        return f"{stem}-{self.index:05d}-of-{self.num:05d}{ending}"
