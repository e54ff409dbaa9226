"""Counts the steps that were skipped because their numbers were not finite; a checkpoint contains the counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Skipped:
    """How many steps were skipped: in the whole training, and directly before the next step."""

    num: int = 0
    in_a_row: int = 0

    def restore(self, num: int = 0, in_a_row: int = 0) -> None:
        """Go on counting from these counts."""
        self.num, self.in_a_row = num, in_a_row
